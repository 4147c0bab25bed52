"""Read chosen frames of a video: through decord where that is sure to be right, else through PyAV.

Both give the frames that the released weights were trained on, to the bit. PyAV reads the packets
of any file first (see `packets`). Where they tell frames and places to jump to, it decodes only
what it needs. Elsewhere it decodes the whole video and counts the frames that are shown: the index
of a frame is its number among them. Times are those at which a player shows the frames.

A reader belongs to the thread that made it: decord crashes when two share one.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import cast

import av
import numpy as np
import torch
from av.container import InputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from video_llama.processors.image import FrameScaler, is_upright
from video_llama.processors.limits import Budget, CostError, limit
from video_llama.processors.media import (
    TOGETHER,
    check_end,
    find_audio,
    frame_rate,
    open_container,
    presentation_start,
    require_video,
)
from video_llama.processors.packets import Entry, PacketIndex, data_packets
from video_llama.processors.sampling import Timeline, timeline
from video_llama.types import MediaError

_DECORD_CONTAINERS = {"matroska", "mov", "mp4", "webm"}
"""Containers in which decord finds the right frames; in MPEG-TS and MPEG-PS it does not."""

_DECORD_CODECS = {"h264", "vp8", "vp9"}
"""Codecs in which it does; in HEVC and MPEG-4 part 2 its frames are off after a seek."""

_SKIPPING = {"h264"}
"""Codecs whose decoders can pass over frames that no other frame is made from."""

_MANY_PIXELS = 2**24
"""Pixels of a frame above which one thread decodes: each thread holds frames of its own."""

Choose = Callable[[Timeline], Sequence[int]]
"""From the times of all frames to the indices of those wanted. May be called twice."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Reading:
    """Frames that were read.

    Attributes:
        timeline: of all frames of the video.
        indices: of the T frames read.
        frames: (T, H, W, 3) uint8, RGB, upright, resized (bilinear, the aspect ratio is not kept).
    """

    timeline: Timeline
    indices: list[int]
    frames: np.ndarray


class DecordError(MediaError):
    """A video that decord cannot read; PyAV may."""


def read_frames(path: str | Path, choose: Choose, *, height: int, width: int) -> Reading:
    """Open a video and decode the frames that `choose` asks for.

    Args:
        choose: called with the times of the frames; twice where these are known only at the end.
        height: of the frames, in pixels.
        width: likewise.

    Raises:
        MediaError: the file is no video, the frames cannot be decoded, or this costs too much.
    """
    # PyAV looks at every file: decord takes cover art for a video, and some damaged headers make
    # it end the process.
    reader = PyAvReader(path, height=height, width=width)
    reader.check_complete()
    if not reader.is_exact:
        # One pass is enough where the packets are frames after all, as they mostly are.
        with suppress(MediaError):
            reader.expect(choose(reader.timeline))
        reader.count()
    indices = list(choose(reader.timeline))
    frames = _read(reader, path, indices, height, width)
    return Reading(timeline=reader.timeline, indices=indices, frames=frames)


def _read(
    reader: PyAvReader, path: str | Path, indices: list[int], height: int, width: int
) -> np.ndarray:
    """Read frames the cheapest way that is sure to be right."""
    try:
        if (frames := reader.skim(indices)) is not None:
            return frames
    # What is too expensive one way is too expensive every way.
    except CostError:
        raise
    except MediaError:
        pass  # the other ways make more of a damaged file
    if decord_module() is not None and _suits_decord(reader):
        with suppress(DecordError):  # PyAV may do better, and if not its error says more
            return read_by_decord(path, reader.num_frames, indices, height=height, width=width)
    return reader.read(indices)


@cache
def decord_module() -> ModuleType | None:
    """Return decord, silenced; None on machines that it has no wheel for."""
    if importlib.util.find_spec("decord") is None:
        return None
    decord = importlib.import_module("decord")
    decord.logging.set_level(decord.logging.QUIET)
    return decord


def _suits_decord(reader: PyAvReader) -> bool:
    """Tell whether decord finds the right frames, and no damaged header makes it end the process.

    It counts packets, so none may be hidden; it knows no mirrored frames.
    """
    return (
        reader.is_exact
        and reader.packets.all_shown
        and reader.codec in _DECORD_CODECS
        and bool(_DECORD_CONTAINERS & reader.containers)
        and reader.promised_frames in (0, reader.num_frames)
        and reader.is_upright()
    )


def read_by_decord(
    path: str | Path, num_frames: int, indices: Sequence[int], *, height: int, width: int
) -> np.ndarray:
    """Decode frames of a video of `num_frames` by their indices, which rise, resized, by decord.

    Raises:
        DecordError: decord is not installed, cannot read the file or counts other frames.
    """
    if (decord := decord_module()) is None:
        raise DecordError(path, "decord is not installed")
    file, threads = str(Path(path).absolute()), decoding_threads()
    try:
        reader = decord.VideoReader(file, width=width, height=height, num_threads=threads)
        # A reader that counts other frames would also hand over other frames.
        if len(reader) != num_frames:
            raise DecordError(path, f"decord counts {len(reader)} frames of {num_frames}")
        frames: np.ndarray = reader.get_batch(list(indices)).asnumpy()
    # A missing or garbled file is a RuntimeError, a corrupt stream a DECORDError.
    except (RuntimeError, decord.DECORDError, UnicodeError) as error:
        raise DecordError(path, "decord cannot read it") from error
    return frames


class PyAvReader:
    """A video read by PyAV.

    Attributes:
        packets: what its packets say.
        is_exact: whether they tell all frames; otherwise `count` must come before `read`.
        timeline: when the frames are shown.
        promised: seconds that the header gives the track; 0 if it gives none, as in Matroska.
        promised_frames: frames that the header gives the track; 0 likewise.
        codec: FFmpeg's name of the codec.
        containers: FFmpeg's names of the container's format.

    Args:
        height: of the frames read, in pixels.
        width: likewise.

    Raises:
        MediaError: the file cannot be read.
    """

    def __init__(self, path: str | Path, *, height: int, width: int) -> None:
        self._path, self._scaler = path, FrameScaler(height=height, width=width)
        # Frames that were decoded on the way, while all were counted.
        self._found: dict[int, np.ndarray] = {}
        self._expected: set[int] = set()
        self._budget = Budget(path)
        with open_container(path) as container:
            stream = require_video(container, path)
            self.codec = stream.codec_context.codec.canonical_name
            self.containers = frozenset(container.format.name.split(","))
            self._pixels = stream.codec_context.width * stream.codec_context.height
            self._is_intra = stream.codec_context.codec.intra_only
            self._tick = float(stream.time_base or 0)
            self._rate = frame_rate(stream)
            self._start = presentation_start(container)
            self._has_sound = find_audio(container) is not None
            self.promised = float((stream.duration or 0) * self._tick)
            self.promised_frames = stream.frames
            track_start = (stream.start_time or 0) * self._tick
            # This pass reads the file but decodes nothing.
            self.packets = PacketIndex(container, stream, self._budget)
        self.is_exact = self.packets.is_exact
        self._track_seconds = self.packets.end * self._tick - track_start
        times = self.packets.times if self.is_exact else range(self.packets.num_packets)
        self.timeline = self._timeline(times, self._tick if self.is_exact else 0.0)

    @property
    def num_frames(self) -> int:
        """How many frames are shown."""
        return len(self.timeline.seconds)

    @property
    def fps(self) -> float:
        """Average frames per second."""
        return self.timeline.fps

    def check_complete(self) -> None:
        """Raise `MediaError` for a track without frames or one that was cut short."""
        if self.packets.num_packets < 1:
            raise MediaError(self._path, "its video track has no frames")
        check_end(self._path, "video track", self._track_seconds, self.promised)

    def is_upright(self) -> bool:
        """Tell whether the first frame is shown as it is stored, neither turned nor mirrored."""
        with self._open() as (container, stream):
            return all(is_upright(frame) for frame in islice(container.decode(stream), 1))

    def expect(self, indices: Sequence[int]) -> None:
        """Keep these frames while counting; they are what a caller will probably read."""
        self._expected = set(indices)

    def count(self) -> None:
        """Decode the whole video to learn its frames and their times.

        Raises:
            MediaError: it is damaged, holds no frame or costs too much to decode.
        """
        # A bomb is refused here, before its first frame is decoded.
        self._budget.expect(self.packets.num_packets * self._pixels)
        shown: list[int | None] = []
        decoded: list[int | None] = []
        with self._open() as (container, stream):
            for index, frame in enumerate(self._whole_frames(container, stream)):
                shown.append(frame.pts)
                decoded.append(frame.dts)
                if index in self._expected:
                    self._found[index] = self._scaler(frame)
        if not shown:
            raise MediaError(self._path, "none of its frames can be decoded")
        # AVI has no display times and FFmpeg's guesses may be out of order. Then frames take the
        # times of the packets in turn, or those at which they left the decoder.
        for times in (shown, self.packets.times, decoded):
            if len(times) == len(shown) and _is_rising(times):
                self.timeline = self._timeline(cast(list[int], times), self._tick)
                return
        self.timeline = self._timeline(range(len(shown)), 0.0)

    def read(self, indices: Sequence[int]) -> np.ndarray:
        """Decode frames.

        Args:
            indices: of the frames, in rising order.

        Returns:
            (T, H, W, 3) uint8, RGB, upright, resized.

        Raises:
            MediaError: a frame cannot be decoded.
        """
        found = self._found
        if self.is_exact:
            self._budget.expect(self._pixels * self.packets.cost(indices))
            with self._open() as (container, stream):
                self._jump(container, stream, indices, found)
        # Some containers do not seek to where they are told. Then all is decoded from the start.
        if missing := set(indices) - set(found):
            with self._open() as (container, stream):
                for index, frame in self._from_start(container, stream):
                    if index in missing:
                        found[index] = self._scaler(frame)
                    if index >= max(missing):
                        break
        return self._stacked(indices, found)

    def frames(self) -> Iterator[tuple[float, VideoFrame]]:
        """Decode all frames that are shown, with their seconds."""
        with self._open() as (container, stream):
            for index, frame in self._from_start(container, stream):
                yield self.timeline.seconds[index], frame

    def skim(self, indices: Sequence[int]) -> np.ndarray | None:
        """Decode frames, and of the others only those that they are made from.

        Args:
            indices: as in `read`.

        Returns:
            As `read`; None where the decoder cannot do that.

        Raises:
            MediaError: the file is damaged, or a frame cannot be decoded without the others.
        """
        if not self.is_exact or self.codec not in _SKIPPING:
            return None
        found: dict[int, np.ndarray] = {}
        self._budget.expect(self._pixels * self.packets.cost(indices))
        # What a decoder makes of damage differs between versions of FFmpeg.
        with self._open(err_detect="explode") as (container, stream):
            self._jump(container, stream, indices, found, skip=True)
        return self._stacked(indices, found)

    def _timeline(self, ticks: Sequence[int], tick: float) -> Timeline:
        """Return when frames are shown, from their times in ticks; without ticks, from the rate."""
        if not ticks:
            return Timeline(seconds=[], end=0.0, fps=self._rate or 1.0)
        # Until all is counted there are only numbers; the rate makes seconds of them.
        if not tick:
            rate = self._rate or len(ticks) / max(self._track_seconds, 0.001)
            return timeline([index / rate for index in ticks], fps=rate, tick=1e-3, last=0, start=0)
        times = [time * tick for time in ticks]
        # A track that begins between key frames shows nothing until the first of them.
        is_late = self._has_sound and times[0] > self._start + TOGETHER
        return timeline(
            times,
            fps=self._rate,
            tick=tick,
            last=self.packets.last_duration * tick,
            start=self._start if is_late else times[0],
        )

    @contextmanager
    def _open(self, **options: str) -> Iterator[tuple[InputContainer, VideoStream]]:
        """Open the file for decoding."""
        with open_container(self._path) as container:
            stream = require_video(container, self._path)
            threads = decoding_threads() if self._pixels < _MANY_PIXELS else 1
            # Threads of whole frames would decode frames that nobody asked for.
            stream.thread_type = "SLICE" if self._is_intra else "AUTO"
            stream.codec_context.thread_count = threads
            # The size may grow behind the header.
            options["max_pixels"] = str(limit("frame_pixels"))
            stream.codec_context.options = options
            yield container, stream

    def _jump(
        self,
        container: InputContainer,
        stream: VideoStream,
        indices: Sequence[int],
        found: dict[int, np.ndarray],
        *,
        skip: bool = False,
    ) -> None:
        """Decode frames from the entry before each, and put them into `found`."""
        # Frames are recognised by their times, so that it does not matter how many a decoder holds
        # back or where a seek ends.
        times = self.packets.times
        wanted = {times[index] for index in indices} if skip or self._is_intra else None
        frames = self._decoded(container, stream, self.packets.entries[0], wanted)
        position = self.packets.entries[0].pts
        for index in sorted(set(indices) - set(found)):
            time = times[index]
            entry = self.packets.entry_before(time)
            # Decoding on is shorter than a jump back to where it stands.
            if entry.pts > position:
                frames = self._decoded(container, stream, entry, wanted)
            for frame in frames:
                position = frame.pts if frame.pts is not None else position
                if position == time:
                    found[index] = self._scaler(frame)
                if position >= time:
                    break

    def _decoded(
        self,
        container: InputContainer,
        stream: VideoStream,
        entry: Entry,
        wanted: set[int] | None,
    ) -> Iterator[VideoFrame]:
        """Decode from an entry on; nothing, if the container does not lead there.

        Args:
            container: the open file.
            entry: where to begin.
            wanted: times of frames; others are left out if none is made from them. None: all.
        """
        # The file stands before the first entry already, and not every container can seek. Most
        # take the time of showing and end at the entry; for others the time of decoding is right.
        targets = (None,) if entry == self.packets.entries[0] else dict.fromkeys(entry)
        for packet in _packets_from(container, stream, entry, targets):
            if wanted is not None and packet.size:
                is_wanted = packet.pts in wanted
                # No other frame is made from this one.
                if self._is_intra and not is_wanted:
                    continue
                stream.codec_context.skip_frame = "DEFAULT" if is_wanted else "NONREF"
            for frame in packet.decode():
                self._budget.spend(frame.width, frame.height)
                yield frame

    def _from_start(
        self, container: InputContainer, stream: VideoStream
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Decode all frames, with their indices."""
        if not self.is_exact:
            yield from enumerate(self._whole_frames(container, stream))
            return
        # The decoder may show frames that an edit list leaves out; those have no number.
        numbers = {time: index for index, time in enumerate(self.packets.times)}
        for frame in self._whole_frames(container, stream):
            if frame.pts in numbers:
                yield numbers[frame.pts], frame

    def _whole_frames(self, container: InputContainer, stream: VideoStream) -> Iterator[VideoFrame]:
        """Decode all frames from the first whole one on; errors count from there on only."""
        is_waiting, has_begun = self.packets.has_keys, False
        for packet in data_packets(container, stream):
            self._budget.check_time()
            # Before the first key frame there is nothing to make frames from. Decoders differ in
            # what they do there: grey pictures, errors, or nothing.
            is_waiting = is_waiting and not packet.is_keyframe
            if is_waiting and packet.size:
                continue
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                if has_begun:
                    raise
                continue
            for frame in frames:
                self._budget.spend(frame.width, frame.height)
                has_begun = has_begun or not frame.is_corrupt
                if has_begun:
                    yield frame

    def _stacked(self, indices: Sequence[int], found: dict[int, np.ndarray]) -> np.ndarray:
        for index in indices:
            if index not in found:
                reason = f"frame {index} of {self.num_frames} cannot be decoded"
                raise MediaError(self._path, f"{reason}; the file is cut short or damaged")
        return np.stack([found[index] for index in indices])


def _packets_from(
    container: InputContainer, stream: VideoStream, entry: Entry, targets: Iterable[int | None]
) -> Iterator[Packet[VideoStream]]:
    """Read the packets from an entry on; none, if the container does not lead there.

    Args:
        container: the open file.
        stream: its video track.
        entry: where to begin.
        targets: times to seek to, one after the other until the entry follows; None: no seek.
    """
    for target in targets:
        if target is not None:
            container.seek(target, stream=stream)
        is_there = False
        for packet in data_packets(container, stream):
            # Seeks end somewhere near. Decoding starts at the entry itself, or the first frames
            # would be made from pictures that the decoder has not seen.
            if not is_there:
                if packet.dts is not None and packet.dts > entry.pts:
                    break
                is_there = packet.pts == entry.pts
            if is_there:
                yield packet
        if is_there:
            return


def _is_rising(times: Sequence[int | None]) -> bool:
    """Tell whether every frame has a time and none is earlier than the one before."""
    known = [time for time in times if time is not None]
    return len(known) == len(times) and all(map(int.__le__, known, known[1:]))


def decoding_threads() -> int:
    """Return the decoding threads: 1 in a data worker, which has siblings; else 0, one per core."""
    return 0 if torch.utils.data.get_worker_info() is None else 1
