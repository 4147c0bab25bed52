"""A file of a chat: what the model gets of it, and what people may look at."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, Literal

import numpy as np
from einops import rearrange
from torch import Tensor

from video_llama.datasets.conversation import Media
from video_llama.processors.files import check_file

Kind = Literal["video", "image", "audio"]

Progress = Callable[[float, str], None]
"""Told the share that is done, 0 to 1, and what is being done."""

_identities = count()
"""Tells every encoded medium of the process from every other."""


@dataclass(frozen=True, eq=False)
class EncodedPart:
    """The sound or the picture of a file as the language model gets it.

    Attributes:
        media: how it appears in the prompt.
        tokens: (1, N, D_llm).
        identity: a number that nothing else encoded in this process has.
    """

    media: Media
    tokens: Tensor = field(repr=False)
    identity: int = field(default_factory=lambda: next(_identities))


@dataclass(frozen=True)
class MediaSource:
    """What a file was added as: two that are equal give the same media.

    Attributes:
        path: absolute.
        size: bytes of the file.
        changed: time of the file, in nanoseconds.
        kind: what to take it for; None: what it is.
        num_frames: frames of a clip; None: as configured.
        num_clips: segments of a sound; None: as configured.
    """

    path: Path
    size: int
    changed: int
    kind: Kind | None = None
    num_frames: int | None = None
    num_clips: int | None = None

    @classmethod
    def of(
        cls, path: str | Path, kind: Kind | None, num_frames: int | None, num_clips: int | None
    ) -> MediaSource:
        """What stands at a path now.

        Raises:
            MediaError: nothing that can be read does.
        """
        absolute = check_file(path)
        status = absolute.stat()
        return cls(absolute, status.st_size, status.st_mtime_ns, kind, num_frames, num_clips)


@dataclass(eq=False)
class MediaItem:
    """One file of a chat.

    Attributes:
        path: the file.
        kind: what it was taken for.
        sound: encoded; None if there is none or it has not been needed yet.
        picture: encoded frames; None for a sound.
        has_sound: whether the file has a sound track; None for a picture.
        sound_used: whether its sound is in the prompt.
        frames: (3, T, H, W) uint8 of what the model sees; None for sounds.
        frame_seconds: when each frame is shown.
        spectrograms: (S, 1, mel, frames) of what the model hears; None without sound.
        sound_spans: begin and end of each sound segment, in seconds.
        notice: what the user should know about the file; empty if nothing.
        timings: seconds spent decoding and encoding.
        source: what was asked for: file with its size and time, kind, frames and segments.
    """

    path: Path
    kind: Kind
    sound: EncodedPart | None = None
    picture: EncodedPart | None = None
    has_sound: bool | None = None
    sound_used: bool = False
    frames: Tensor | None = field(default=None, repr=False)
    frame_seconds: list[float] = field(default_factory=list)
    spectrograms: Tensor | None = field(default=None, repr=False)
    sound_spans: list[tuple[float, float]] = field(default_factory=list)
    notice: str = ""
    timings: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "encode": 0.0})
    source: MediaSource | None = None

    @property
    def encoded(self) -> list[EncodedPart]:
        """What of it is in the prompt: the sound of a clip first, then its frames."""
        parts = [self.sound if self.sound_used else None, self.picture]
        return [part for part in parts if part is not None]

    @property
    def parts(self) -> list[Media]:
        """How it appears in the prompt."""
        return [part.media for part in self.encoded]

    @property
    def tokens(self) -> list[Tensor]:
        """(1, N, D_llm) for each of `parts`."""
        return [part.tokens for part in self.encoded]

    @property
    def num_tokens(self) -> int:
        """Positions that it takes in the prompt."""
        return sum(media.num_tokens for media in self.parts)

    @property
    def tensors(self) -> list[Tensor]:
        """Everything that takes memory."""
        encoded = [part.tokens for part in (self.sound, self.picture) if part is not None]
        shown = [tensor for tensor in (self.frames, self.spectrograms) if tensor is not None]
        return [*encoded, *shown]

    def frame_pictures(self) -> list[np.ndarray[Any, Any]]:
        """(H, W, 3) uint8 of every frame that the model sees."""
        if self.frames is None:
            return []
        return list(rearrange(self.frames, "c t h w -> t h w c").numpy())

    def spectrogram_pictures(self) -> list[np.ndarray[Any, Any]]:
        """(mel, frames, 3) uint8 of every sound segment: low tones below, loud is bright."""
        if self.spectrograms is None:
            return []
        return [_spectrogram_picture(segment[0]) for segment in self.spectrograms]

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's duration to `timings[stage]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[stage] += time.perf_counter() - start


_COLOURS = np.array([[0, 0, 4], [81, 18, 124], [183, 55, 121], [252, 137, 97], [252, 253, 191]])
"""From quiet to loud, as bright on a dark page as on a light one."""


def _spectrogram_picture(values: Tensor) -> np.ndarray[Any, Any]:
    """(mel, frames) to (mel, frames, 3) uint8, low tones below, the loudest brightest."""
    cells = values.flip(0).float().numpy()
    low, high = float(cells.min()), float(cells.max())
    shares = (cells - low) / max(high - low, 1e-6) * (len(_COLOURS) - 1)
    places = np.arange(len(_COLOURS))
    channels = [np.interp(shares, places, _COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).astype(np.uint8)
