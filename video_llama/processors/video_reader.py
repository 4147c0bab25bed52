"""Reading chosen frames of a video: through decord where that is sure to work, else through PyAV.

Both give the frames that the released weights were trained on, to the bit. Where PyAV can pass over
frames that nobody needs it comes first, for decord decodes them all. PyAV looks at any file first:
decord takes cover art for a video, miscounts after a seek in some codecs and containers, and
ends the process on some damaged headers. It also has no wheels for some machines. A reader belongs
to the thread that made it: decord crashes when two share one.


Finding and reading chosen frames of a video through PyAV.

The frames equal decord's, which the released weights were trained on, to the bit.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

import numpy as np
import torch
from av.container import InputContainer
from av.filter import Graph
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from video_llama.processors.media import duration_of, frame_rate, open_container, require_video
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


_FILTERS_OF_TURNS: dict[int, list[tuple[str, str]]] = {
    0: [],
    1: [("transpose", "cclock")],
    2: [("hflip", ""), ("vflip", "")],
    3: [("transpose", "clock")],
}
"""FFmpeg's filters that turn a picture by so many quarters, against the clock."""

_SKIPPING = {"h264"}
"""Codecs whose decoders can pass over frames that no other frame is made from."""


class PyAvReader:
    """A video read by PyAV. Frames are known by their times, which opening it collects.

    Attributes:
        num_frames: how many frames it has.
        fps: average frames per second; not finite if unknown.
        end: seconds from the start of the track to the end of its last frame.
        promised: seconds that the header gives the track; 0 if it gives none, as in Matroska.
        promised_frames: frames that the header gives the track; 0 likewise.
        codec: FFmpeg's name of the codec.
        containers: FFmpeg's names of the container's format.

    Args:
        path: of the file.
        height: of the frames read, in pixels.
        width: likewise.

    Raises:
        MediaError: the file cannot be read.
    """

    def __init__(self, path: str | Path, *, height: int, width: int) -> None:
        self._path, self._size = path, (height, width)
        self._graph: tuple[object, Graph] | None = None
        with open_container(path) as container:
            stream = require_video(container, path)
            packets = [
                (p.pts, p.is_keyframe, p.duration or 0)
                for p in container.demux(stream)
                if p.size and not p.is_discard
            ]
            rate, seconds = frame_rate(stream), duration_of(container, stream)
            ticks = max(((pts or 0) + length for pts, _, length in packets), default=0)
            self.end = float((ticks - (stream.start_time or 0)) * (stream.time_base or 1))
            self.promised = float((stream.duration or 0) * (stream.time_base or 1))
            self.promised_frames = stream.frames
            self.codec = stream.codec_context.codec.canonical_name
            self.containers = frozenset(container.format.name.split(","))
        times = [pts for pts, _, _ in packets if pts is not None]
        # AVI and raw streams have no display times: then frames are counted as they come.
        self._times = sorted(times) if len(set(times)) == len(packets) else None
        closed = self._times is not None and _is_closed(packets)
        self._can_skip = closed and self.codec in _SKIPPING
        self._key_times = sorted(pts for pts, key, _ in packets if key and pts is not None)
        self.num_frames = len(packets)
        self.fps = rate or (self.num_frames / seconds if seconds else math.nan)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Decodes frames; see `readers.FrameReader`."""
        found: dict[int, np.ndarray] = {}
        if self._times is not None:
            self._collect(indices, found, seek=True)
        if len(found) < len(set(indices)):  # no times, or a container whose seeking is not exact
            self._collect(indices, found, seek=False)
        return self._stacked(indices, found)

    def skim(self, indices: Sequence[int]) -> np.ndarray | None:
        """Decodes frames, and of the others only those that they are made from.

        Args:
            indices: as in `read`.

        Returns:
            As `read`; None where the file is of a kind that this is not sure to be right for.

        Raises:
            MediaError: the file is damaged, or a frame cannot be decoded without the others.
        """
        if not self._can_skip:
            return None
        found: dict[int, np.ndarray] = {}
        self._collect(indices, found, seek=True, skip=True)
        return self._stacked(indices, found)

    def _stacked(self, indices: Sequence[int], found: dict[int, np.ndarray]) -> np.ndarray:
        for index in indices:
            if index not in found:
                reason = f"frame {index} of {self.num_frames} cannot be decoded"
                raise MediaError(self._path, f"{reason}; the file is cut short or damaged")
        return np.stack([found[index] for index in indices])

    def _collect(
        self,
        indices: Sequence[int],
        found: dict[int, np.ndarray],
        *,
        seek: bool,
        skip: bool = False,
    ) -> None:
        """Puts the frames that can be decoded into `found`."""
        wanted = {self._times[index] for index in indices} if skip and self._times else None
        with open_container(self._path) as container:
            stream = require_video(container, self._path)
            stream.thread_type = "AUTO"
            stream.codec_context.thread_count = decoding_threads()
            if skip:  # what a decoder makes of damage differs between versions of FFmpeg
                stream.codec_context.options = {"err_detect": "explode"}
            frames = self._numbered(container, stream, wanted)
            position = -1
            for index in sorted(set(indices) - set(found)):
                if seek and self._seek(container, stream, position, index):
                    frames = self._numbered(container, stream, wanted)
                for number, frame in frames:
                    position = number
                    if number == index:
                        found[index] = self._picture(frame)
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
        self, container: InputContainer, stream: VideoStream, wanted: set[int] | None
    ) -> Iterator[tuple[int, VideoFrame]]:
        """The frames from the current place on, with their indices; see `_decoded`."""
        numbers = None if self._times is None else {t: i for i, t in enumerate(self._times)}
        for place, frame in enumerate(_decoded(container, stream, wanted)):
            number = place if numbers is None else numbers.get(frame.pts or 0)
            if number is not None:
                yield number, frame

    def _picture(self, frame: VideoFrame) -> np.ndarray:
        """(H, W, 3) uint8, turned as the file asks for (phones film sideways)."""
        turns = round(frame.rotation / 90) % 4
        kind = (frame.width, frame.height, frame.format.name, turns)
        if self._graph is None or self._graph[0] != kind:
            self._graph = (kind, _graph(frame, turns, *self._size))
        graph = self._graph[1]
        graph.push(frame)
        scaled = graph.pull()
        assert isinstance(scaled, VideoFrame)
        return scaled.to_ndarray()


def _is_closed(packets: Sequence[tuple[int | None, bool, int]]) -> bool:
    """Whether each (time, is key frame, duration) in decoding order is shown after its key frame.

    In an open group of pictures some are shown before it and need the group before. Decord counts
    wrong after a jump over those, so what it and a decoder that skips find there may differ.
    """
    key = -math.inf
    for time, is_key, _ in packets:
        if time is None or time < key:
            return False
        key = time if is_key else key
    return True


def _decoded(
    container: InputContainer, stream: VideoStream, wanted: set[int] | None
) -> Iterator[VideoFrame]:
    """The frames from the current place on.

    Args:
        container: the open file.
        stream: its video track.
        wanted: times of frames; others are left out if none is made from them. None: all frames.
    """
    for packet in container.demux(stream):
        if wanted is not None:
            stream.codec_context.skip_frame = "DEFAULT" if packet.pts in wanted else "NONREF"
        yield from packet.decode()


def _graph(frame: VideoFrame, turns: int, height: int, width: int) -> Graph:
    """Filters that turn and resize frames like this one, those that decord uses."""
    graph = Graph()
    last = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
    )
    scale = ("scale", f"{width}:{height}:flags=bilinear")
    for name, arguments in [*_FILTERS_OF_TURNS[turns], scale, ("format", "rgb24")]:
        following = graph.add(name, arguments)
        last.link_to(following)
        last = following
    last.link_to(graph.add("buffersink"))
    graph.configure()
    return graph


def decoding_threads() -> int:
    """Decoding threads: one in a data worker, which has siblings; else 0, as many as cores."""
    return 0 if torch.utils.data.get_worker_info() is None else 1
