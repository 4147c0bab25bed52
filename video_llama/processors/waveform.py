"""Decode sound tracks with PyAV and resample them with torchaudio, in bounded memory.

Samples are floats in -1..1, as `torchaudio.load` gives them. A long file is decoded twice: once to
count its samples, because headers lie, and once to keep the spans that are asked for.

Samples lie on the time line of their file (`media.presentation_start`): a sound that starts after
the picture begins with silence, and a pause in the time stamps is silence at its place.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

import video_llama.common.compat

import av
import torch
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from torch import Tensor
from torchaudio.functional import resample

from video_llama.processors.limits import Budget, limit, refuse_cost
from video_llama.processors.media import (
    MAX_SAMPLE_RATE,
    MIN_SAMPLE_RATE,
    NoSoundError,
    check_end,
    duration_of,
    find_audio,
    find_video,
    open_container,
    presentation_start,
)
from video_llama.types import MediaError

MAX_CHANNELS = 64
"""Most channels of a sound: seventh-order ambisonics, or a large mixing desk."""

KEPT_SAMPLES = 2**24
"""Samples (of all channels) up to which a file is kept in memory and decoded once: 64 MiB."""

_SILENT_BLOCK = 2**20
"""Samples of silence that are made at once."""

_TOLERANCE = 0.01
"""Seconds that a time stamp may be off before samples are moved. Matroska rounds to 1 ms, and the
edit lists of phones leave gaps of some milliseconds that the original never saw."""

_RESTART = 1.0
"""Seconds that time stamps have to jump back to count as a new start, not as an overlap."""

_KERNEL_LIMIT = 2**24
"""Largest table of resampling filters, in floats. A prime sample rate would need gigabytes."""

_EXACT_DURATION = {"wav", "flac", "mov", "mp4"}
"""Containers whose header knows the duration; others are guessed from the bit rate."""

Span = tuple[int, int]
"""Begin and end (exclusive) of a part, in samples."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Sound:
    """The sound track of a file, its samples counted.

    Attributes:
        rate: samples per second.
        num_samples: samples of one channel, from the start of the file's time line.
        kept: (channels, samples) float32; None for a long file, which is decoded again.
    """

    path: Path
    rate: int
    num_channels: int
    num_samples: int
    kept: Tensor | None

    def resampled_length(self, rate: int) -> int:
        """Return the samples of one channel at another rate, as torchaudio counts them."""
        return -(-self.num_samples * rate // self.rate)

    def read(self, spans: list[Span], *, rate: int) -> list[Tensor]:
        """Return parts of the sound at another sample rate.

        Equal to resampling the whole sound (sinc, Hann window) and cutting it, up to rounding.

        Args:
            spans: begin and end of each part, in samples at `rate`; they may overlap.
            rate: samples per second of the result.

        Returns:
            (channels, samples) float32 each.

        Raises:
            MediaError: the file cannot be decoded.
        """
        # Clips overlap, so each area of the sound is decoded and resampled once.
        areas = _merged(spans)
        sources = [self._source(area, rate) for area in areas]
        pieces = self._pieces(sources)
        result: dict[Span, Tensor] = {}
        for area, source, piece in zip(areas, sources, pieces, strict=True):
            if not piece.isfinite().all():
                raise MediaError(self.path, "its sound has samples that are no finite numbers")
            # `source` begins where a sample of both rates falls together, so this is exact.
            offset = area[0] - source[0] * rate // self.rate
            part = resample(piece, self.rate, rate)[:, offset : offset + area[1] - area[0]]
            for span in spans:
                if area[0] <= span[0] and span[1] <= area[1]:
                    result[span] = part[:, span[0] - area[0] : span[1] - area[0]]
        return [result[span] for span in spans]

    def _source(self, area: Span, rate: int) -> Span:
        """Return the samples of the file that an area at another rate depends on."""
        common = math.gcd(self.rate, rate)
        old, new = self.rate // common, rate // common
        context = 1 + -(-_filter_width(old, new) // old)
        first = max(0, area[0] // new - context) * old
        return first, min(self.num_samples, (-(-area[1] // new) + context) * old)

    def _pieces(self, spans: list[Span]) -> list[Tensor]:
        """Return parts of the file at its own rate; the spans are in order of their begin."""
        if self.kept is not None:
            return [self.kept[:, begin:end] for begin, end in spans]
        found: list[list[Tensor]] = [[] for _ in spans]
        with closing(_blocks(self.path)) as blocks:
            position = 0
            for block, _ in blocks:
                stop = position + block.shape[1]
                for piece, (begin, end) in zip(found, spans, strict=True):
                    if begin < stop and position < end:
                        cut = block[:, max(begin - position, 0) : end - position]
                        piece.append(cut.clone())  # not a view that keeps the whole block
                position = stop
                if position >= spans[-1][1]:
                    break
        return [torch.cat(piece, dim=1) for piece in found]


def open_sound(path: str | Path) -> Sound:
    """Decode a sound track once, count its samples and keep them if they are few.

    Args:
        path: a sound file, or a video with sound.

    Raises:
        NoSoundError: the file has no sound track, or one without any samples.
        MediaError: it cannot be decoded, or costs more than `limits.LIMITS` allow.
    """
    most_seconds, most_samples, budget = limit("sound_seconds"), limit("samples"), Budget(path)
    kept: list[Tensor] = []
    total, channels, rate = 0, 0, 1
    for block, rate in _blocks(path):
        channels = block.shape[0]
        total += block.shape[1]
        # Checked while decoding: a header may claim anything, and so may a time stamp.
        budget.check_time()
        if total > most_seconds * rate:
            refuse_cost(path, "its sound is longer", "sound_seconds", "s")
        if total * channels > most_samples:
            refuse_cost(path, "its sound has more samples", "samples", "samples of all channels")
        if total * channels <= KEPT_SAMPLES:
            kept.append(block)
        else:
            kept.clear()
    if total == 0:
        raise NoSoundError(path, "its sound track has no samples")
    whole = torch.cat(kept, dim=1) if kept and total * channels <= KEPT_SAMPLES else None
    return Sound(path=Path(path), rate=rate, num_channels=channels, num_samples=total, kept=whole)


def _blocks(path: str | Path) -> Generator[tuple[Tensor, int], None, None]:
    """Yield the waveform piece by piece, (channels, n) float32, with its sample rate."""
    with open_container(path) as container:
        stream = find_audio(container)
        if stream is None and container.streams.audio:
            raise MediaError(path, "its sound is in a codec that cannot be decoded")
        if stream is None:
            raise NoSoundError(path, "it has no sound track")
        converter = _Converter(path)
        line = _TimeLine(container, stream)
        # A gap is known before the frame that follows it, so whatever the converter still holds
        # back comes first, then the silence, then the frame.
        for frame, gap in line.place(_frames(container, stream, path)):
            if gap:
                yield from converter.flush()
            if gap > 0:
                yield from converter.silence(frame, gap)
            elif gap < 0:
                converter.skip(frame, -gap)
            yield from converter.convert(frame)
        yield from converter.flush()
        if _EXACT_DURATION & set(container.format.name.split(",")):
            check_end(path, "sound", line.decoded, duration_of(container, stream) or 0.0)


class _TimeLine:
    """The place of decoded frames on the time line of their file.

    Attributes:
        decoded: seconds from the first sample to the end of the last one.
    """

    def __init__(self, container: InputContainer, stream: AudioStream) -> None:
        # Without a video the first sample is the start, and headers are often wrong about it.
        has_video = find_video(container) is not None
        self._origin = presentation_start(container) if has_video else None
        durations = [duration_of(container, stream), duration_of(container, None)]
        known = [seconds for seconds in durations if seconds is not None]
        self._promised = max(known) if known else None
        self._position = 0.0
        self._lead = 0.0

    @property
    def decoded(self) -> float:
        return self._position - self._lead

    def place(self, frames: Iterator[AudioFrame]) -> Iterator[tuple[AudioFrame, float]]:
        """Yield each frame with the seconds of silence before it.

        Negative seconds are those of the frame that are left out, because they lie before the
        start of the time line or repeat what has been heard.
        """
        first = list(islice(frames, 2))
        self._lead = start = self._start(first)
        for index, frame in enumerate(chain(first, frames)):
            gap = start if index == 0 else self._gap(frame)
            self._position += gap + frame.samples / (frame.sample_rate or 1)
            yield frame, gap

    def _start(self, first: list[AudioFrame]) -> float:
        """Return the seconds between the start of the time line and the first sample."""
        times = [frame.time for frame in first]
        if not times or times[0] is None:
            return 0.0
        if self._origin is None:
            self._origin = times[0]
        start = times[0] - self._origin
        # Where the edit list of an mp4 cuts the first packet, its time is wrong by the part that
        # was cut, and only the second tells where the sound is.
        if start < -_TOLERANCE and len(times) == 2 and times[1] is not None:
            second = times[1] - self._origin - first[0].samples / (first[0].sample_rate or 1)
            start = second if abs(second) <= _TOLERANCE else start
        return start if abs(start) > _TOLERANCE else 0.0

    def _gap(self, frame: AudioFrame) -> float:
        """Return the seconds between the end of the last frame and this one, if they matter."""
        if frame.time is None or self._origin is None:
            return 0.0
        gap = frame.time - self._origin - self._position
        # A jump behind the promised end is a damaged time stamp, a large one back a new start
        # (files glued together): from there on, times are counted from where the sound is.
        too_far = self._promised is not None and self._position + gap > self._promised + 1
        if too_far or gap < -_RESTART:
            self._origin += gap
            return 0.0
        return gap if abs(gap) > _TOLERANCE else 0.0


class _Converter:
    """Frames of any format to (channels, n) float32 in the rate and channels of the first.

    FFmpeg converts to packed samples first: PyAV reads past the planes of a frame that has eight
    or more channels in planes of their own, and the process ends with a segmentation fault.
    """

    def __init__(self, path: str | Path) -> None:
        self._path = path
        self._rate = self._channels = self._skipped = 0
        self._format: tuple[object, ...] = ()
        self._resampler: av.AudioResampler | None = None

    def convert(self, frame: AudioFrame) -> Iterator[tuple[Tensor, int]]:
        """Yield what a frame gives; a change of its format in mid-file is followed."""
        self._prepare(frame)
        form = (frame.format.name, frame.layout.name, frame.sample_rate)
        if form != self._format:
            yield from self.flush()
            self._format = form
        if self._resampler is None:
            self._resampler = av.AudioResampler("flt", frame.layout, self._rate)
        for part in self._resampler.resample(frame):
            yield from self._block(part)

    def flush(self) -> Iterator[tuple[Tensor, int]]:
        """Yield what the resampler still holds back."""
        resampler, self._resampler = self._resampler, None
        for part in resampler.resample(None) if resampler else []:
            yield from self._block(part)

    def silence(self, frame: AudioFrame, seconds: float) -> Iterator[tuple[Tensor, int]]:
        """Yield silence in the form of the sound that `frame` is part of."""
        self._prepare(frame)
        left = round(seconds * self._rate)
        while left > 0:
            count = min(left, _SILENT_BLOCK // self._channels)
            yield torch.zeros(self._channels, count), self._rate
            left -= count

    def skip(self, frame: AudioFrame, seconds: float) -> None:
        """Leave out the next samples."""
        self._prepare(frame)
        self._skipped += round(seconds * self._rate)

    def _prepare(self, frame: AudioFrame) -> None:
        """Take rate and channels from the first frame, if they are within reason."""
        if not 1 <= frame.layout.nb_channels <= MAX_CHANNELS:
            count = frame.layout.nb_channels
            reason = f"its sound has {count} channels, 1 to {MAX_CHANNELS} expected"
            raise MediaError(self._path, reason)
        rate = _usable_rate(self._path, frame.sample_rate)
        if not self._rate:
            self._rate, self._channels = rate, frame.layout.nb_channels

    def _block(self, part: AudioFrame) -> Iterator[tuple[Tensor, int]]:
        packed = torch.from_numpy(part.to_ndarray())
        block = packed.view(-1, part.layout.nb_channels)[self._skipped :]
        self._skipped = max(0, self._skipped - part.samples)
        if not len(block):
            return
        # Channels that go are dropped and missing ones repeat the last, so the first, which is
        # the one that is heard, stays what it is.
        missing = self._channels - block.shape[1]
        if missing > 0:
            block = torch.cat([block, block[:, -1:].expand(-1, missing)], dim=1)
        yield block[:, : self._channels].T.contiguous(), self._rate


def _frames(
    container: InputContainer, stream: AudioStream, path: str | Path
) -> Iterator[AudioFrame]:
    """Yield decoded frames; packets that cannot be decoded are left out while they are few."""
    good = bad = 0
    for packet in container.demux(stream):
        try:
            frames = packet.decode()
            good += 1
        except av.InvalidDataError:
            bad += 1
            continue
        for frame in frames:
            assert isinstance(frame, AudioFrame)
            if frame.samples > 0:
                yield frame
    if bad >= good:
        raise MediaError(path, f"its sound is damaged: {bad} packets cannot be decoded")


def _usable_rate(path: str | Path, rate: int) -> int:
    """Return the sample rate to decode to: the file's, or a common one if its filters are huge."""
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        limits = f"{MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz"
        raise MediaError(path, f"its sample rate is {rate} Hz, {limits} expected")
    common = math.gcd(rate, 16_000)
    old, new = rate // common, 16_000 // common
    return rate if new * (old + 2 * _filter_width(old, new)) <= _KERNEL_LIMIT else 48_000


def _filter_width(old: int, new: int) -> int:
    """Return half the length of torchaudio's default filter, in samples of the old rate."""
    return math.ceil(6 * old / (min(old, new) * 0.99))


def _merged(spans: list[Span]) -> list[Span]:
    """Join overlapping spans and put them in order."""
    areas: list[Span] = []
    for begin, end in sorted(spans):
        if areas and begin <= areas[-1][1]:
            areas[-1] = (areas[-1][0], max(end, areas[-1][1]))
        else:
            areas.append((begin, end))
    return areas
