"""Bound what reading one file may cost, in time, memory, frames and samples.

Every limit can be set by an environment variable, which errors name. `LIMITS` lists them.
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import NoReturn

from video_llama.types import ConfigError, MediaError

LIMITS = {
    "frame_pixels": 2**26,
    "video_pixels": 2**35,
    "frames": 2_000_000,
    "tracks": 64,
    "seconds": 60,
    "sound_seconds": 6 * 3600,
    "samples": 6 * 3600 * 8 * 48_000,
    "picture_pixels": 178_956_970,
    "worker_seconds": 15,
    "worker_megabytes": 2000,
}
"""What reading one file may cost. `VIDEO_LLAMA_MAX_` with a name in capitals sets another number.

* `frame_pixels`: of one frame; twice 8K.
* `video_pixels`: of all frames that have to be decoded; an hour of standard television.
* `frames`: of one video track; nine hours at 60 frames/s.
* `tracks`: of one file.
* `seconds`: of reading the frames, or the sound, of one file.
* `sound_seconds`: that a sound lasts.
* `samples`: of all channels of a sound; six hours of 7.1 at 48 kHz.
* `picture_pixels`: of a picture that is unpacked: 512 MiB of RGB. Pillow's own for a sure attack.
* `worker_seconds`: of reading one file in a worker process, and 1 s more for every 2 MB of it.
* `worker_megabytes`: of memory for reading one file in a worker process.
"""


def limit(name: str) -> int:
    """Return a limit of `LIMITS`, or what the environment sets in its place.

    Raises:
        ConfigError: the environment holds something other than a whole number above 0.
    """
    key = limit_key(name)
    value = os.environ.get(key, "").strip()
    if not value:  # also `VARIABLE= command`, which is how a shell takes a value away
        return LIMITS[name]
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"{key}: {value!r} given, a whole number above 0 expected")
    return int(value)


def limit_key(name: str) -> str:
    """Return the environment variable that sets a limit."""
    return f"VIDEO_LLAMA_MAX_{name.upper()}"


class CostError(MediaError):
    """A media file that costs more to read than `LIMITS` allow."""


class Budget:
    """Time and pixels that may still be spent on one file."""

    def __init__(self, path: str | Path) -> None:
        self.path = path
        self._begin = time.monotonic()
        self._seconds, self._pixels = limit("seconds"), limit("video_pixels")
        self._frame_pixels = limit("frame_pixels")
        self._spent = 0

    def check_time(self) -> None:
        """Raise `MediaError` when reading has taken too long."""
        if time.monotonic() - self._begin > self._seconds:
            refuse_cost(self.path, "reading it takes too long", "seconds", "s")

    def spend(self, width: int, height: int) -> None:
        """Count a decoded frame; raise `MediaError` when the cost exceeds a limit."""
        self.check_time()
        if width * height > self._frame_pixels:
            check_frame_size(self.path, width, height)
        self._spent += width * height
        self.expect(0)

    def expect(self, pixels: int) -> None:
        """Raise `MediaError` when so many pixels more would exceed the limit."""
        if self._spent + pixels > self._pixels:
            reason = f"about {self._spent + pixels:.3g} pixels have to be decoded"
            refuse_cost(self.path, reason, "video_pixels", "pixels")


def refuse_cost(path: str | Path, reason: str, name: str, unit: str) -> NoReturn:
    """Raise the error of a file that costs more than a limit."""
    raise CostError(
        path, f"{reason}, at most {limit(name)} {unit} are allowed ({limit_key(name)} sets it)"
    )


def check_frame_size(path: str | Path, width: int, height: int) -> None:
    """Raise `MediaError` for frames that are too large."""
    if width * height > limit("frame_pixels"):
        reason = f"frames of {width}x{height} pixels are too large"
        refuse_cost(path, reason, "frame_pixels", "pixels")
