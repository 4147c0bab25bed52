"""Reading chosen frames of a video: through decord where that is sure to work, else through PyAV.

Both give the frames that the released weights were trained on, to the bit. Where PyAV can pass over
frames that nobody needs it comes first, for decord decodes them all. PyAV looks at any file first:
decord takes cover art for a video, miscounts after a seek in some codecs and containers, and
ends the process on some damaged headers. It also has no wheels for some machines. A reader belongs
to the thread that made it: decord crashes when two share one.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from video_llama.processors.pyav_reader import PyAvReader, decoding_threads
from video_llama.types import MediaError

_DECORD_CONTAINERS = {"avi", "matroska", "mov", "mp4", "webm"}
"""Containers in which decord finds the right frames; in MPEG-TS and MPEG-PS it does not."""

_DECORD_CODECS = {"h264", "mpeg4", "vp8", "vp9"}
"""Codecs in which it does; after a seek in HEVC its frames are some places off."""

Choose = Callable[[int, float], Sequence[int]]
"""From the number of frames and the frames per second to the indices of the frames wanted."""


class FrameReader(Protocol):
    """An open video.

    Attributes:
        num_frames: how many frames it has.
        fps: average frames per second; not finite if unknown.
    """

    num_frames: int
    fps: float

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Decodes frames.

        Args:
            indices: of the frames, in rising order.

        Returns:
            (T, H, W, 3) uint8, RGB, upright, resized (bilinear, the aspect ratio is not kept).

        Raises:
            MediaError: a frame cannot be decoded.
        """


class DecordError(MediaError):
    """A video that decord cannot read; PyAV may."""


class DecordReader:
    """A video opened by decord.

    Args:
        path: of the file.
        height: of the frames read, in pixels.
        width: likewise.

    Raises:
        DecordError: decord is not installed or cannot read the file.
    """

    def __init__(self, path: str | Path, *, height: int, width: int) -> None:
        self._path = path
        decord = decord_module()
        if decord is None:
            raise DecordError(path, "decord is not installed")
        self._failures = (RuntimeError, decord.DECORDError, UnicodeError)
        try:
            self._reader: Any = decord.VideoReader(
                str(Path(path).absolute()),
                width=width,
                height=height,
                num_threads=decoding_threads(),
            )
        except self._failures as error:
            raise DecordError(path, "decord cannot open it") from error
        self.num_frames = len(self._reader)
        self.fps = float(self._reader.get_avg_fps())

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Decodes frames; see `FrameReader`."""
        try:
            frames: np.ndarray = self._reader.get_batch(list(indices)).asnumpy()
        except self._failures as error:
            raise DecordError(self._path, "decord cannot decode its frames") from error
        return frames


def read_frames(
    path: str | Path, choose: Choose, *, height: int, width: int
) -> tuple[FrameReader, list[int], np.ndarray]:
    """Opens a video and decodes the frames that `choose` asks for.

    Args:
        path: of the file.
        choose: called once, with what the reader says of the video.
        height: of the frames, in pixels.
        width: likewise.

    Returns:
        The reader, the indices and the frames, (T, H, W, 3) uint8.

    Raises:
        MediaError: the file is no video, or the frames cannot be decoded.
    """
    reader = PyAvReader(path, height=height, width=width)
    if reader.num_frames < 1:
        raise MediaError(path, "its video track has no frames")
    if reader.end < 0.9 * reader.promised and reader.end < reader.promised - 0.5:
        reason = f"its video track ends at {reader.end:.4g} s of {reader.promised:.4g} s"
        raise MediaError(path, f"{reason}; the file is cut short or damaged")
    indices = list(choose(reader.num_frames, reader.fps))
    if _suits_decord(reader):
        with suppress(MediaError):  # the other ways make more of a damaged file
            if (frames := reader.skim(indices)) is not None:
                return reader, indices, frames
        if decord_module() is not None:
            with suppress(DecordError):  # PyAV may do better, and if not its error says more
                frames = _read_by_decord(path, reader.num_frames, indices, height, width)
                return reader, indices, frames
    return reader, indices, reader.read(indices)


@cache
def decord_module() -> ModuleType | None:
    """decord, with its messages to stderr turned off; None on machines that it has no wheel for."""
    if importlib.util.find_spec("decord") is None:
        return None
    decord = importlib.import_module("decord")
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _suits_decord(reader: PyAvReader) -> bool:
    """Whether decord finds the right frames, and no damaged header makes it end the process."""
    return (
        reader.codec in _DECORD_CODECS
        and bool(_DECORD_CONTAINERS & reader.containers)
        and reader.promised_frames in (0, reader.num_frames)
    )


def _read_by_decord(
    path: str | Path, num_frames: int, indices: Sequence[int], height: int, width: int
) -> np.ndarray:
    reader = DecordReader(path, height=height, width=width)
    if reader.num_frames != num_frames:
        raise DecordError(path, f"decord counts {reader.num_frames} frames of {num_frames}")
    return reader.read(indices)
