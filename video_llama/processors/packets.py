"""Tell from the packets of a video, without decoding, which frames it shows and where to jump.

Seeking in a video is only right where two things hold: every frame is known by a packet of its
own, and decoding can start afresh at the packets that are jumped to. Flags of the container prove
neither: they call a picture in an open group or the start of an intra refresh a key frame, and
count packets that show nothing. The first bytes of the packets do. Where they leave a doubt,
`PacketIndex` is not exact, and the reader decodes the whole video and counts.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import chain, repeat
from typing import NamedTuple

from av.container import InputContainer
from av.packet import Packet
from av.video.stream import VideoStream

from video_llama.processors.limits import Budget, limit, refuse_cost


class PacketRole(NamedTuple):
    """What a packet is for.

    Attributes:
        is_shown: it makes exactly one frame that is shown; otherwise none.
        is_entry: decoding can start here, and all frames shown later come out right.
    """

    is_shown: bool
    is_entry: bool


Classify = Callable[["Packet[VideoStream]"], PacketRole | None]
"""From a packet to its role; None if its bytes leave a doubt."""

_SHOWN, _ENTRY, _HIDDEN = PacketRole(True, False), PacketRole(True, True), PacketRole(False, False)


class Entry(NamedTuple):
    """A packet at which decoding can start.

    Attributes:
        pts: time at which its frame is shown, in ticks.
        seek: the earlier of that and the time of decoding, in ticks.
    """

    pts: int
    seek: int


def data_packets(container: InputContainer, stream: VideoStream) -> Iterator[Packet[VideoStream]]:
    """Read the packets that hold data, and the one at the end that makes the decoder finish."""
    for packet in container.demux(stream):
        # A decoder takes an empty packet in the middle for the end.
        if packet.size or packet.dts is None:
            yield packet


class PacketIndex:
    """The packets of a video track, read once from the start.

    Attributes:
        num_packets: packets that hold data and are to be shown.
        times: of the frames, in ticks and rising; what the packets say, a guess if not `is_exact`.
        entries: where to jump to, rising.
        is_exact: every frame is known by the time of its packet, and the entries are sure.
        all_shown: no packet is hidden, so that one may count packets.
        has_keys: the container marks key frames.
        first_key: a packet in front of the first key frame cannot be decoded.
        end: ticks at which the last frame ends.
        last_duration: ticks that the last frame is shown; 0 if unknown.
    """

    def __init__(self, container: InputContainer, stream: VideoStream, budget: Budget) -> None:
        self.num_packets = self.end = self.last_duration = 0
        self.times: list[int] = []
        self.entries: list[Entry] = []
        self.has_keys, self.all_shown = False, True
        self.is_exact = self._read(container, stream, budget)
        # Packets come in the order of decoding, frames are counted in the order of showing.
        self.times.sort()
        self.entries.sort()
        # Two frames at one time cannot be told apart.
        self.is_exact = self.is_exact and all(map(int.__lt__, self.times, self.times[1:]))

    def entry_before(self, time: int) -> Entry:
        """Return the last entry from which the frame of a time can be decoded."""
        return self.entries[bisect_right(self.entries, time, key=lambda entry: entry.pts) - 1]

    def cost(self, indices: Sequence[int]) -> int:
        """Return how many frames have to be decoded for some, each from the entry before it."""
        frames, done = 0, -1
        # Frames that lie in one group are decoded once.
        for index in sorted(indices):
            first = bisect_left(self.times, self.entry_before(self.times[index]).pts)
            frames += index - max(first - 1, done)
            done = index
        return frames

    def _read(self, container: InputContainer, stream: VideoStream, budget: Budget) -> bool:
        """Read all packets; return whether their roles and times are sure."""
        classify = _classifier(stream, set(container.format.name.split(",")))
        last_dts, max_frames, is_sure = -(2**63), limit("frames"), classify is not None
        # This loop runs for every packet of a long film, so it asks for little.
        for packet in container.demux(stream):
            if not packet.size:
                continue  # a capture program dropped this frame, or the end of the file
            pts, dts = packet.pts, packet.dts
            role = classify(packet) if classify is not None else _SHOWN
            # Times that fall back come from files that were glued together.
            if role is None or pts is None or (dts is not None and dts < last_dts):
                role, classify, is_sure = _SHOWN, None, False
            is_shown, is_entry = role
            if dts is not None:
                last_dts = dts
            if packet.is_keyframe:
                self.has_keys = True
            if is_entry and pts is not None:
                self.entries.append(Entry(pts, pts if dts is None else min(pts, dts)))
            if is_sure and not self.entries:
                is_sure = False  # it begins between key frames
            if not is_shown:
                self.all_shown = False
                continue
            if packet.is_discard:
                continue  # the edit list of an mp4 leaves it out
            self.num_packets += 1
            duration = packet.duration or 0
            if pts is not None:
                self.times.append(pts)
            if (pts or 0) + duration > self.end:
                self.end, self.last_duration = (pts or 0) + duration, duration
            if not self.num_packets % 256:
                budget.check_time()
            if self.num_packets > max_frames:
                refuse_cost(budget.path, "its video track is too long", "frames", "frames")
        return is_sure


def _classifier(stream: VideoStream, containers: set[str]) -> Classify | None:
    """Return how to read a codec's packets; None where times or packets are not reliable."""
    context = stream.codec_context
    codec = context.codec.canonical_name
    # These need no look into the packets.
    if context.codec.intra_only or codec in _ONE_TO_ONE:
        return _in_order
    if not containers & _TIMED_CONTAINERS:
        return None
    if codec == "h264":
        # A transport stream may hold the two fields of a frame in two packets.
        is_split = "mpegts" in containers and context.field_order not in _PROGRESSIVE
        return None if is_split else partial(_h264, _length_size(context.extradata, 4))
    if codec == "hevc":
        return HevcClassifier(_length_size(context.extradata, 21))
    if codec == "gif":
        # Each paints over the one before, so only the first is an entry.
        roles = chain([_ENTRY], repeat(_SHOWN))
        return lambda _: next(roles)
    return {"vp8": _vp8, "vp9": _vp9, "mpeg4": _mpeg4}.get(codec)


_TIMED_CONTAINERS = {"flv", "gif", "ivf", "matroska", "mov", "mpegts"}
"""FFmpeg's names of containers that hold the display time of every frame.

In AVI, ASF and MXF FFmpeg guesses these times, and program streams time some frames only.
"""

_ONE_TO_ONE = {"av1", "ffv1", "huffyuv", "png", "qtrle"}
"""Codecs without reordering, or whose packets hold one shown frame by definition (AV1)."""

_PROGRESSIVE = {0, 1}
"""FFmpeg's orders of fields of a track without fields: unknown and progressive."""


def _in_order(packet: Packet[VideoStream]) -> PacketRole:
    """Classify a packet of a codec in which each is one shown frame and the key flags are true."""
    return _ENTRY if packet.is_keyframe else _SHOWN


def _length_size(extradata: bytes | None, place: int) -> int:
    """Return the bytes of the length in front of each unit; 0 where start codes part the units."""
    if not extradata or extradata[0] != 1 or len(extradata) <= place:
        return 0
    return (extradata[place] & 3) + 1


_NO_PICTURE, _DAMAGED = -1, -2


def _first_unit(data: memoryview, length_size: int, is_picture: Callable[[int], bool]) -> int:
    """Return the first byte of the first unit of a packet that belongs to a picture.

    Args:
        data: a packet of H.264 or HEVC.
        length_size: bytes of the length in front of each unit; 0 for start codes.
        is_picture: whether a unit with such a first byte belongs to a picture.

    Returns:
        The byte, `_NO_PICTURE`, or `_DAMAGED` where a length is wrong.
    """
    # MP4 and Matroska put the length of each unit in front of it.
    size, place = len(data), 0
    if length_size:
        while place + length_size < size:
            begin = place + length_size
            place = begin + int.from_bytes(data[place:begin], "big")
            if place > size:
                return _DAMAGED
            if place > begin and is_picture(data[begin]):
                return data[begin]
        return _NO_PICTURE if place == size else _DAMAGED
    # Streams part the units by start codes, which cannot occur inside one.
    text = bytes(data)
    while (place := text.find(b"\0\0\1", place) + 3) > 2 and place < size:
        if is_picture(text[place]):
            return text[place]
    return _NO_PICTURE


_H264_ROLES = {1: _SHOWN, 2: _SHOWN, 5: _ENTRY, _NO_PICTURE: _HIDDEN}
"""Roles by the type of a packet's first slice; only an IDR picture (5) makes a decoder forget."""


def _h264(length_size: int, packet: Packet[VideoStream]) -> PacketRole | None:
    """Classify a packet of H.264 by the first slice in it; for `length_size` see `_first_unit`."""
    data = memoryview(packet)
    # Most packets begin with a slice.
    if length_size and len(data) > length_size and (kind := data[length_size] & 31) in (1, 5):
        return _H264_ROLES[kind]
    unit = _first_unit(data, length_size, lambda byte: byte & 31 in (1, 2, 5))
    return _H264_ROLES.get(unit if unit < 0 else unit & 31)


class HevcClassifier:
    """Packets of HEVC: pictures of types 16 to 21 are entries.

    Pictures that are shown before an entry but come after it may need the group before. After the
    first entry there is none, and decoders leave them out.

    Args:
        length_size: bytes of the length in front of each unit; 0 for start codes.
    """

    def __init__(self, length_size: int) -> None:
        self._length_size = length_size
        self._num_entries = 0

    def __call__(self, packet: Packet[VideoStream]) -> PacketRole | None:
        """Classify the next packet by the first slice in it (types below 32)."""
        unit = _first_unit(memoryview(packet), self._length_size, lambda byte: byte >> 1 & 63 < 32)
        if unit < 0:
            return _HIDDEN if unit == _NO_PICTURE else None
        kind = unit >> 1 & 63
        if 16 <= kind <= 21:
            self._num_entries += 1
            return _ENTRY
        # Types 8 and 9 are shown before their entry and need the group in front of it.
        is_lost = kind in (8, 9) and self._num_entries == 1
        return _HIDDEN if is_lost else _SHOWN


def _vp8(packet: Packet[VideoStream]) -> PacketRole:
    """Classify a packet of VP8 (RFC 6386, section 9.1): alternate reference frames are hidden."""
    first = memoryview(packet)[0]
    return PacketRole(is_shown=bool(first & 16), is_entry=not first & 1)


def _vp9(packet: Packet[VideoStream]) -> PacketRole | None:
    """Classify a packet of VP9: a superframe holds hidden frames and at most one shown frame."""
    frames = _vp9_frames(memoryview(packet))
    if frames is None:
        return None
    roles = [_vp9_frame(frame) for frame in frames]
    shown = sum(role.is_shown for role in roles)
    return None if shown > 1 else PacketRole(shown == 1, roles[0].is_entry)


def _vp9_frames(data: memoryview) -> list[int] | None:
    """Return the first bytes of the frames in a packet; None if its index is damaged."""
    # The index stands at the end of the packet, between two equal bytes.
    last = data[-1]
    if last & 0xE0 != 0xC0:
        return [data[0]]
    count, width = (last & 7) + 1, (last >> 3 & 3) + 1
    # A frame may by chance end like an index. Then the two bytes differ.
    start = len(data) - 2 - count * width
    if start < 0 or data[start] != last:
        return [data[0]]
    frames, place = [], 0
    for i in range(count):
        if place >= start:
            return None
        frames.append(data[place])
        at = start + 1 + i * width
        place += int.from_bytes(data[at : at + width], "little")
    return frames


def _vp9_frame(byte: int) -> PacketRole:
    """Classify a frame by its first byte: marker 2 bits, profile 2, existing, not key, shown."""
    # Profile 3 has one more bit in front of the flags.
    shift = 0 if byte >> 4 & 3 != 3 else 1
    if byte >> (3 - shift) & 1:
        return _SHOWN  # a frame of before is shown once more
    is_key = not byte >> (2 - shift) & 1
    return PacketRole(is_shown=bool(byte >> (1 - shift) & 1), is_entry=is_key)


_VOP = b"\0\0\1\xb6"
"""Start of a picture in MPEG-4 part 2."""

_SMALLEST_VOP = 20
"""Bytes of a packet below which it may only say that the picture before is shown again."""


def _mpeg4(packet: Packet[VideoStream]) -> PacketRole | None:
    """Classify a packet of MPEG-4 part 2; DivX packs two pictures into one packet."""
    # Start codes cannot occur inside a picture, so counting them is enough.
    text = bytes(packet)
    if text.count(_VOP) != 1 or len(text) < _SMALLEST_VOP:
        return None
    place = text.find(_VOP) + len(_VOP)
    return _ENTRY if place < len(text) and text[place] >> 6 == 0 else _SHOWN
