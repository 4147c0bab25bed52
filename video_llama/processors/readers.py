"""Reading chosen frames of a video: through decord, and through PyAV for what decord cannot read.

decord gives the frames that the released weights were trained on, to the bit. It has no wheels for
some machines, and there are codecs that it does not know (AV1) or miscounts (HEVC); PyAV's frames
differ by rounding (0.2 of 255 on average). A reader belongs to the thread that made it: decord
crashes when two share one.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np

from video_llama.processors.media import open_container, require_video
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
        end: seconds from the start of the track to the end of its last frame.
    """

    num_frames: int
    fps: float
    end: float

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
        self.end = float(self._reader.get_frame_timestamp(self.num_frames - 1)[1])

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
        choose: called with what a reader says of the video; twice when decord fails half-way.
        height: of the frames, in pixels.
        width: likewise.

    Returns:
        The reader, the indices and the frames, (T, H, W, 3) uint8.

    Raises:
        MediaError: the file is no video, or the frames cannot be decoded.
    """
    with open_container(path) as container:
        # Before decord sees the file: it takes cover art for a video and has no limits.
        stream = require_video(container, path)
        promised = float((stream.duration or 0) * (stream.time_base or 0))
        suits_decord = stream.codec_context.codec.canonical_name in _DECORD_CODECS and bool(
            _DECORD_CONTAINERS & set(container.format.name.split(","))
        )
    if suits_decord and decord_module() is not None:
        try:
            return _read(DecordReader(path, height=height, width=width), path, choose, promised)
        except DecordError:
            pass  # PyAV may do better, and if not its error says more
    return _read(PyAvReader(path, height=height, width=width), path, choose, promised)


@cache
def decord_module() -> ModuleType | None:
    """decord, with its messages to stderr turned off; None on machines that it has no wheel for."""
    if importlib.util.find_spec("decord") is None:
        return None
    decord = importlib.import_module("decord")
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _read(
    reader: FrameReader, path: str | Path, choose: Choose, promised: float
) -> tuple[FrameReader, list[int], np.ndarray]:
    """Reads the frames, unless the track has none or fewer than its header promises.

    Args:
        reader: the open video.
        path: for the message.
        choose: as in `read_frames`.
        promised: seconds; 0 in Matroska, which promises nothing for a track: there the frames that
            came are the video.
    """
    if reader.num_frames < 1:
        raise MediaError(path, "its video track has no frames")
    if reader.end < 0.9 * promised and reader.end < promised - 0.5:
        reason = f"its video track ends at {reader.end:.4g} s of {promised:.4g} s"
        raise MediaError(path, f"{reason}; the file is cut short or damaged")
    indices = list(choose(reader.num_frames, reader.fps))
    return reader, indices, reader.read(indices)
