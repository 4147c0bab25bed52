"""Turn a sound into log-mel spectrograms of a few seconds from all over the file."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, ClassVar, Protocol

import video_llama.common.compat

import torch
from torch import Tensor
from torch.nn.functional import pad
from torchaudio.compliance.kaldi import fbank

from video_llama.processors.media import NoSoundError
from video_llama.processors.waveform import open_sound

_SILENT, _LOUD = 1e-4, 1e-2
"""Largest sample of a channel that nobody hears (-80 dB), and of one that is heard (-40 dB)."""


class ClipOptions(Protocol):
    """What `AudioProcessor` reads of its settings; `settings.AudioSettings` provides it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    sample_rate: int
    clips_per_video: int
    num_mel_bins: int
    target_length: int
    mean: float
    std: float
    channels: str

    @property
    def clip_samples(self) -> Fraction:
        """Samples of one clip, at `sample_rate`."""


@dataclass(frozen=True, kw_only=True, eq=False)
class AudioClips:
    """Spectrograms of S clips.

    Attributes:
        values: (S, 1, num_mel_bins, target_length) float32, normalised.
        spans: begin and end of each clip, in seconds of the file's time line.
        duration: seconds to the end of the sound.
        sample_rate: Hz of the decoded sound; the file's, unless its resampling filters are huge.
        notice: what the user should know about the sound; empty if nothing.
    """

    values: Tensor
    spans: list[tuple[float, float]]
    duration: float
    sample_rate: int
    num_channels: int
    notice: str = ""


class AudioProcessor:
    """`imagebind_audio`: what the original feeds to ImageBind's audio tower.

    Args:
        settings: clips, spectrogram and normalisation.
        start: seconds where the part that is heard begins.
        end: seconds where it ends; None: with the sound.
    """

    def __init__(
        self, settings: ClipOptions, *, start: float = 0.0, end: float | None = None
    ) -> None:
        self.settings = settings
        self.start, self.end = start, end

    def __call__(self, path: str | Path) -> AudioClips:
        """Decode the clips that the settings ask for; memory does not grow with the file.

        Args:
            path: a sound file, or a video with sound.

        Raises:
            NoSoundError: there is no sound track, or less sound than one window of 25 ms.
            MediaError: it cannot be read.
        """
        s = self.settings
        sound = open_sound(path)
        length = sound.resampled_length(s.sample_rate)
        begin = int(self.start * s.sample_rate)
        if self.end is not None:
            length = min(length, int(self.end * s.sample_rate))
        length = max(length - begin, 0)
        if length < int(s.sample_rate * 0.025):
            part = "the sound" if (self.start, self.end) == (0, None) else "the part of the sound"
            reason = f"{part} lasts {1000 * length / s.sample_rate:.3g} ms"
            raise NoSoundError(path, f"{reason}, at least 25 ms are needed")
        # Only the samples of the clips are resampled, however long the sound is.
        spans = [(begin + first, begin + last) for first, last in clip_spans(length, s)]
        clips = sound.read(spans, rate=s.sample_rate)
        return AudioClips(
            values=log_mel(clips, s),
            spans=[(begin / s.sample_rate, end / s.sample_rate) for begin, end in spans],
            duration=sound.num_samples / sound.rate,
            sample_rate=sound.rate,
            num_channels=sound.num_channels,
            notice=_silent_channel(clips) if s.channels == "first" else "",
        )


def _silent_channel(clips: list[Tensor]) -> str:
    """Return what to say of clips whose first channel is silent beside a loud one."""
    # Of the clips that the model gets, since a channel may be silent elsewhere.
    peaks = torch.stack([clip.abs().amax(dim=1) for clip in clips]).amax(dim=0)
    if len(peaks) < 2 or peaks[0] > _SILENT or peaks.max() < _LOUD:
        return ""
    return (
        f"only the first of its {len(peaks)} channels is heard, and it is silent; set "
        "audio_processor.channels to mean to hear them all"
    )


def clip_spans(num_samples: int, settings: ClipOptions) -> list[tuple[int, int]]:
    """Begin and end of each clip, as pytorchvideo 0.1.5 places them, in exact fractions.

    The clips begin at i * slack / n for i = 0 .. n - 1, so the last n-th of the slack is not heard.
    A sound shorter than a clip gives n times the whole sound.

    Args:
        num_samples: of the sound, at `settings.sample_rate`.
        settings: number and duration of the clips.

    Returns:
        Pairs of sample indices, the end exclusive.
    """
    length, count = settings.clip_samples, settings.clips_per_video
    slack = max(num_samples - length, Fraction(0))
    begins = [i * slack / count for i in range(count)]
    return [(int(begin), min(int(begin + length), num_samples)) for begin in begins]


def log_mel(clips: list[Tensor], settings: ClipOptions) -> Tensor:
    """Normalised log-mel spectrograms of clips, as the original computes them.

    Each clip loses its mean over all channels, and channel 0 or the mean of the channels is heard.
    Short spectrograms are padded with zeros *before* normalisation, so the padding is -mean / std.

    Args:
        clips: (channels, samples) float32 each, at `settings.sample_rate`.
        settings: channels, bands, frames and normalisation.

    Returns:
        (S, 1, num_mel_bins, target_length) float32.
    """
    s = settings
    window, shift = int(s.sample_rate * 0.025), int(s.sample_rate * 0.01)
    # One call for all clips: each is padded to a whole number of shifts, so that its windows are
    # where they would be if it stood alone; windows that reach into the padding are dropped.
    slot = -(-max(clip.shape[1] for clip in clips) // shift)
    # The mean over all channels is what the original subtracts, also from the first alone.
    mono = [(c.mean(dim=0) if s.channels == "mean" else c[0]) - c.mean() for c in clips]
    padded = [pad(wave, (0, slot * shift - len(wave))) for wave in mono]
    mel = fbank(
        pad(torch.cat(padded), (0, window))[None],
        htk_compat=True,
        sample_frequency=s.sample_rate,
        use_energy=False,
        window_type="hanning",
        num_mel_bins=s.num_mel_bins,
        dither=0.0,
        frame_length=25,
        frame_shift=10,
    )
    # The original pads before it normalises, so the padding is not 0 in the end.
    values = torch.zeros(len(clips), 1, s.num_mel_bins, s.target_length)
    for index, clip in enumerate(clips):
        frames = min(1 + (clip.shape[1] - window) // shift, s.target_length)
        values[index, 0, :, :frames] = mel[index * slot : index * slot + frames].T
    return values.sub_(s.mean).div_(s.std)
