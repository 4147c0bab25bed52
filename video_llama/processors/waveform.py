"""Waveforms: decoding with PyAV and resampling with torchaudio, in bounded memory.

Samples are floats in -1..1, as `torchaudio.load` gives them. A long file is decoded twice: once to
count its samples (headers lie), once to keep the parts that are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import video_llama.common.compat

import av
import torch
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.container import InputContainer
from torch import Tensor
from torchaudio.functional import resample

from video_llama.processors.media import (
    MAX_SAMPLE_RATE,
    MIN_SAMPLE_RATE,
    NoSoundError,
    duration_of,
    find_audio,
    open_container,
)
from video_llama.types import MediaError

MAX_SECONDS = 6 * 3600
"""Longest sound that is decoded, in seconds."""

KEPT_SAMPLES = 2**24
"""Samples (of all channels) up to which a file is kept in memory and decoded once: 64 MiB."""

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
        path: the file.
        rate: samples per second.
        num_channels: channels.
        num_samples: samples of one channel.
        kept: (channels, samples) float32; None for a long file, which is decoded again.
    """

    path: Path
    rate: int
    num_channels: int
    num_samples: int
    kept: Tensor | None

    def resampled_length(self, rate: int) -> int:
        """Samples of one channel at another rate, as torchaudio counts them."""
        return -(-self.num_samples * rate // self.rate)

    def read(self, spans: list[Span], *, rate: int) -> list[Tensor]:
        """Parts of the sound at another sample rate.

        Equal to resampling the whole sound (sinc, Hann window) and cutting it, up to rounding.

        Args:
            spans: begin and end of each part, in samples at `rate`; they may overlap.
            rate: samples per second wanted.

        Returns:
            (channels, samples) float32 each.

        Raises:
            MediaError: the file cannot be decoded.
        """
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
        """The samples of the file that an area at another rate depends on."""
        common = math.gcd(self.rate, rate)
        old, new = self.rate // common, rate // common
        context = 1 + -(-_filter_width(old, new) // old)
        first = max(0, area[0] // new - context) * old
        return first, min(self.num_samples, (-(-area[1] // new) + context) * old)

    def _pieces(self, spans: list[Span]) -> list[Tensor]:
        """Parts of the file at its own rate; the spans do not begin before one another."""
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
    """Decodes a sound track once, counts its samples and keeps them if they are few.

    Args:
        path: a sound file, or a video with sound.

    Raises:
        NoSoundError: the file is fine but has no sound track.
        MediaError: it cannot be decoded, or is absurdly long.
    """
    kept: list[Tensor] = []
    total, channels, rate = 0, 0, 1
    for block, rate in _blocks(path):
        channels = block.shape[0]
        total += block.shape[1]
        if total > MAX_SECONDS * rate:
            raise MediaError(path, f"the sound is longer than {MAX_SECONDS // 3600} hours")
        if total * channels <= KEPT_SAMPLES:
            kept.append(block)
        else:
            kept.clear()
    if total == 0:
        raise MediaError(path, "its sound track has no samples")
    whole = torch.cat(kept, dim=1) if kept and total * channels <= KEPT_SAMPLES else None
    return Sound(path=Path(path), rate=rate, num_channels=channels, num_samples=total, kept=whole)


def _blocks(path: str | Path) -> Generator[tuple[Tensor, int], None, None]:
    """The waveform of a file piece by piece, (channels, n) float32, and its sample rate."""
    with open_container(path) as container:
        stream = find_audio(container)
        if stream is None and container.streams.audio:
            raise MediaError(path, "its sound is in a codec that cannot be decoded")
        if stream is None:
            raise NoSoundError(path, "it has no sound track")
        resampler: av.AudioResampler | None = None
        total, rate, layout = 0, 1, ""
        for frame in _frames(container, stream, path):
            if resampler is None:
                rate, layout = _usable_rate(path, frame.sample_rate), frame.layout.name
                resampler = av.AudioResampler("fltp", layout, rate)
            if frame.layout.name != layout:
                raise MediaError(path, "its sound changes its channels in the middle")
            try:
                converted = resampler.resample(frame)
            except ValueError as error:
                raise MediaError(path, "its sound changes its format in the middle") from error
            for part in converted:
                total += part.samples
                yield torch.from_numpy(part.to_ndarray()), rate
        for part in resampler.resample(None) if resampler else []:
            total += part.samples
            yield torch.from_numpy(part.to_ndarray()), rate
        _check_complete(container, stream, path, total / rate)


def _frames(
    container: InputContainer, stream: AudioStream, path: str | Path
) -> Iterator[AudioFrame]:
    """Decoded frames; packets that cannot be decoded are left out while they are the fewer."""
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
            yield frame
    if bad >= good:
        raise MediaError(path, f"its sound is damaged: {bad} packets cannot be decoded")


def _usable_rate(path: str | Path, rate: int) -> int:
    """The sample rate to decode to: the file's, or a common one if its filters would be huge."""
    if not MIN_SAMPLE_RATE <= rate <= MAX_SAMPLE_RATE:
        limits = f"{MIN_SAMPLE_RATE} to {MAX_SAMPLE_RATE} Hz"
        raise MediaError(path, f"its sample rate is {rate} Hz, {limits} expected")
    common = math.gcd(rate, 16_000)
    old, new = rate // common, 16_000 // common
    return rate if new * (old + 2 * _filter_width(old, new)) <= _KERNEL_LIMIT else 48_000


def _check_complete(
    container: InputContainer, stream: AudioStream, path: str | Path, seconds: float
) -> None:
    """Tells a file that was cut short by what its header promises."""
    promised = duration_of(container, stream)
    exact = _EXACT_DURATION & set(container.format.name.split(","))
    if exact and promised and seconds < 0.9 * promised and seconds < promised - 0.5:
        reason = f"its sound ends at {seconds:.4g} s of {promised:.4g} s"
        raise MediaError(path, f"{reason}; the file is cut short or damaged")


def _filter_width(old: int, new: int) -> int:
    """Half the length of torchaudio's default filter, in samples of the old rate (both reduced)."""
    return math.ceil(6 * old / (min(old, new) * 0.99))


def _merged(spans: list[Span]) -> list[Span]:
    """The spans, overlapping ones joined, in order."""
    areas: list[Span] = []
    for begin, end in sorted(spans):
        if areas and begin <= areas[-1][1]:
            areas[-1] = (areas[-1][0], max(end, areas[-1][1]))
        else:
            areas.append((begin, end))
    return areas
