"""Reading chosen frames of a video: through decord, and through PyAV for what decord cannot read.

decord gives the frames that the released weights were trained on, to the bit. It has no wheels for
some machines and does not know every codec (AV1); PyAV's frames differ by rounding (0.2 of 255 on
average). A reader belongs to the thread that made it: decord crashes when two share one.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from av.container import InputContainer
from av.video.frame import VideoFrame
from av.video.reformatter import Interpolation, VideoReformatter
from av.video.stream import VideoStream

from video_llama.processors.media import (
    MAX_FRAME_PIXELS,
    duration_of,
    find_video,
    frame_rate,
    open_container,
)
from video_llama.types import MediaError

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
                str(Path(path).absolute()), width=width, height=height, num_threads=_num_threads()
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


class PyAvReader:
    """A video read by PyAV. Frames are known by their times, which opening it collects.

    Args:
        path: of the file.
        height: of the frames read, in pixels.
        width: likewise.

    Raises:
        MediaError: the file cannot be read.
    """

    def __init__(self, path: str | Path, *, height: int, width: int) -> None:
        self._path, self._size = path, (height, width)
        self._reformatter = VideoReformatter()
        with open_container(path) as container:
            stream = _video_of(container, path)
            packets = [
                (p.pts, p.is_keyframe)
                for p in container.demux(stream)
                if p.size and not p.is_discard
            ]
            rate, seconds = frame_rate(stream), duration_of(container, stream)
        times = [pts for pts, _ in packets if pts is not None]
        # AVI and raw streams have no display times: then frames are counted as they come.
        self._times = sorted(times) if len(set(times)) == len(packets) else None
        self._key_times = sorted(pts for pts, key in packets if key and pts is not None)
        self.num_frames = len(packets)
        self.fps = rate or (self.num_frames / seconds if seconds else math.nan)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Decodes frames; see `FrameReader`."""
        found: dict[int, np.ndarray] = {}
        if self._times is not None:
            self._collect(indices, found, seek=True)
        if len(found) < len(set(indices)):  # no times, or a container whose seeking is not exact
            self._collect(indices, found, seek=False)
        for index in indices:
            if index not in found:
                reason = f"frame {index} of {self.num_frames} cannot be decoded"
                raise MediaError(self._path, f"{reason}; the file is cut short or damaged")
        return np.stack([found[index] for index in indices])

    def _collect(self, indices: Sequence[int], found: dict[int, np.ndarray], *, seek: bool) -> None:
        """Puts the frames that can be decoded into `found`."""
        with open_container(self._path) as container:
            stream = _video_of(container, self._path)
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = _num_threads()
            frames = self._numbered(container, stream)
            wanted = sorted(set(indices) - set(found))
            position = -1
            for index in wanted:
                if index in found:  # met while looking for one before it that is missing
                    continue
                if seek and self._seek(container, stream, position, index):
                    frames = self._numbered(container, stream)
                for number, frame in frames:
                    position = number
                    if number in wanted:
                        found[number] = self._picture(frame)
                    if number >= index:
                        break

    def _seek(self, container: InputContainer, stream: VideoStream, now: int, index: int) -> bool:
        """Jumps to the key frame before a frame, unless decoding on from `now` is shorter."""
        assert self._times is not None
        key = bisect_right(self._key_times, self._times[index]) - 1
        if key < 0 or (now >= 0 and self._key_times[key] <= self._times[now]):
            return False
        container.seek(self._key_times[key], stream=stream)
        return True

    def _numbered(
        self, container: InputContainer, stream: VideoStream
    ) -> Iterator[tuple[int, VideoFrame]]:
        """The frames from the current place on, with their indices."""
        numbers = None if self._times is None else {t: i for i, t in enumerate(self._times)}
        for place, frame in enumerate(container.decode(stream)):
            number = place if numbers is None else numbers.get(frame.pts or 0)
            if number is not None:
                yield number, frame

    def _picture(self, frame: VideoFrame) -> np.ndarray:
        """(H, W, 3) uint8, turned as the file asks for (phones film sideways)."""
        turns = round(frame.rotation / 90) % 4
        height, width = self._size if turns % 2 == 0 else self._size[::-1]
        scaled = self._reformatter.reformat(
            frame, width, height, "rgb24", interpolation=Interpolation.BILINEAR
        )
        return np.rot90(scaled.to_ndarray(), turns)


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
        codec = _video_of(container, path).codec_context.name
    if "av1" not in codec and decord_module() is not None:
        try:
            return _read(DecordReader(path, height=height, width=width), path, choose)
        except DecordError:
            pass  # PyAV may do better, and if not its error says more
    return _read(PyAvReader(path, height=height, width=width), path, choose)


@cache
def decord_module() -> ModuleType | None:
    """decord, with its messages to stderr turned off; None on machines that it has no wheel for."""
    if importlib.util.find_spec("decord") is None:
        return None
    decord = importlib.import_module("decord")
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _read(
    reader: FrameReader, path: str | Path, choose: Choose
) -> tuple[FrameReader, list[int], np.ndarray]:
    if reader.num_frames < 1:
        raise MediaError(path, "its video track has no frames")
    indices = list(choose(reader.num_frames, reader.fps))
    return reader, indices, reader.read(indices)


def _video_of(container: InputContainer, path: str | Path) -> VideoStream:
    """The video track, if it is one that can be decoded within reason."""
    if "_pipe" in container.format.name or container.format.name == "image2":
        raise MediaError(path, "it is a picture, a video was expected")
    stream = find_video(container)
    if stream is None:
        raise MediaError(path, "it has no video track")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width < 1 or height < 1:
        raise MediaError(path, "its video track cannot be decoded: the picture has no size")
    if width * height > MAX_FRAME_PIXELS:
        reason = f"frames of {width}x{height} pixels are too large"
        raise MediaError(path, f"{reason}, at most {MAX_FRAME_PIXELS} pixels can be read")
    return stream


def _num_threads() -> int:
    """Decoding threads: one in a data worker, which has siblings; else 0, as many as cores."""
    return 0 if torch.utils.data.get_worker_info() is None else 1
