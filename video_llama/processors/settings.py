"""Define the settings of every processor, under the names that a YAML gives them.

This module imports no torch: `build` imports the implementation when it is needed, and the
implementations never import this module, so there is no circle.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction
from typing import TYPE_CHECKING

from video_llama.common.checks import MAX_MEDIA, MAX_SIDE, MAX_WIDTH, at_least, at_most
from video_llama.common.registry import Registry, suggestion
from video_llama.types import ConfigError

if TYPE_CHECKING:
    from video_llama.processors.audio import AudioProcessor
    from video_llama.processors.caption import CaptionProcessor
    from video_llama.processors.image import ImageProcessor
    from video_llama.processors.video import VideoProcessor

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
"""Mean of red, green and blue (0..1) over CLIP's training pictures."""

CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""Standard deviation that goes with `CLIP_MEAN`."""

SAMPLINGS = ("auto", "uniform", "headtail", "fps")
"""Ways to choose frames; `auto` leaves the choice to the data set (uniform, unless it says so)."""

CHANNELS = ("first", "mean")
"""What is heard of a sound with several channels."""

PROCESSORS: Registry[type[ProcessorSettings]] = Registry("processor")
"""Settings class of every processor."""


@dataclass(kw_only=True)
class ProcessorSettings:
    """What all processors have in common: they are chosen by name."""

    name: str
    """Registered name of the processor."""


@dataclass(kw_only=True)
class PictureSettings(ProcessorSettings):
    """Size and normalisation of pictures and frames."""

    image_size: int = 224
    """Height and width of the output, in pixels."""
    mean: tuple[float, float, float] = CLIP_MEAN
    """Mean of red, green and blue, subtracted after scaling to 0..1."""
    std: tuple[float, float, float] = CLIP_STD
    """Standard deviation of red, green and blue, divided by."""

    def __post_init__(self) -> None:
        """Check the values; see `ConfigError`."""
        at_least(self, 1, "image_size")
        at_most(self, MAX_SIDE, "image_size")
        # A YAML gives lists; tuples compare equal to the defaults.
        self.mean = _three(self, "mean")
        self.std = _three(self, "std")
        if min(self.std) <= 0:
            raise ConfigError(f"std: {list(self.std)} given, three numbers above 0 expected")

    @property
    def crop_scale(self) -> tuple[float, float] | None:
        """Smallest and largest share of the area that a random crop keeps; None: no crop."""
        return None


@dataclass(kw_only=True)
class CropSettings(PictureSettings):
    """The random crop of training."""

    min_scale: float = 0.5
    """Smallest share of the picture's area that a crop keeps."""
    max_scale: float = 1.0
    """Largest share of the picture's area that a crop keeps."""

    def __post_init__(self) -> None:
        """Check the values; see `ConfigError`."""
        super().__post_init__()
        low, high = self.min_scale, self.max_scale
        if not 0 < low <= high <= 1:
            raise ConfigError(
                f"min_scale: {low} given with max_scale: {high}; "
                "0 < min_scale <= max_scale <= 1 expected"
            )

    @property
    def crop_scale(self) -> tuple[float, float]:
        """Smallest and largest share of the area that a random crop keeps."""
        return self.min_scale, self.max_scale


@dataclass(kw_only=True)
class VideoSettings(PictureSettings):
    """Which frames of a video are taken, and how they are normalised."""

    n_frms: int = 8
    """Frames taken from a video; a shorter video gives all of its frames."""
    sampling: str = "auto"
    """One of `auto`, `uniform`, `headtail` (random frames of both halves) and `fps`."""
    fps: float | None = None
    """Frames taken per second, at most `n_frms` in all; only with `sampling: fps`."""
    start: float = 0.0
    """Seconds at which the part of the video that is used begins."""
    end: float | None = None
    """Seconds at which that part ends; null is the end of the video."""

    def __post_init__(self) -> None:
        """Check the values; see `ConfigError`."""
        super().__post_init__()
        at_least(self, 1, "n_frms")
        at_most(self, MAX_MEDIA, "n_frms")
        at_least(self, 0, "start", "end")
        if self.sampling not in SAMPLINGS:
            hint = suggestion(self.sampling, list(SAMPLINGS))
            raise ConfigError(f"sampling: unknown way {self.sampling!r}; {hint}")
        if self.end is not None and self.end <= self.start:
            raise ConfigError(
                f"end: {self.end:g} s given, more than start ({self.start:g} s) expected"
            )
        # A rate without its sampling, or the other way round, would be ignored without a word.
        if (self.sampling == "fps") != (self.fps is not None):
            raise ConfigError(
                f"fps: {self.fps} given with sampling: {self.sampling}; give both or neither "
                "(sampling: fps, fps: 1.0)"
            )
        if self.fps is not None and not (math.isfinite(self.fps) and self.fps > 0):
            raise ConfigError(f"fps: {self.fps} given, a number above 0 expected")

    def build(self, *, auto_sampling: str = "uniform") -> VideoProcessor:
        """Build the processor.

        Args:
            auto_sampling: what `sampling: auto` means to the caller.
        """
        # Imported here, as torch takes seconds to load and settings are read by quick commands.
        from video_llama.processors.video import VideoProcessor

        sampling = auto_sampling if self.sampling == "auto" else self.sampling
        return VideoProcessor(self, sampling=sampling)


@PROCESSORS.register("alpro_video_train")
@dataclass(kw_only=True)
class VideoTrainSettings(CropSettings, VideoSettings):
    """Frames for training: one random crop for all frames of a clip, resized."""

    name: str = "alpro_video_train"
    """Registered name of the processor."""


@PROCESSORS.register("alpro_video_eval")
@dataclass(kw_only=True)
class VideoEvalSettings(VideoSettings):
    """Frames for evaluation and chat: the whole picture."""

    name: str = "alpro_video_eval"
    """Registered name of the processor."""


@dataclass(kw_only=True)
class ImageSettings(PictureSettings):
    """How a picture is normalised."""

    def build(self) -> ImageProcessor:
        """Build the processor."""
        from video_llama.processors.image import ImageProcessor

        return ImageProcessor(self)


@PROCESSORS.register("blip2_image_train")
@dataclass(kw_only=True)
class ImageTrainSettings(CropSettings, ImageSettings):
    """Pictures for training: a random crop, resized."""

    name: str = "blip2_image_train"
    """Registered name of the processor."""


@PROCESSORS.register("blip2_image_eval")
@dataclass(kw_only=True)
class ImageEvalSettings(ImageSettings):
    """Pictures for evaluation and chat: the whole picture, resized."""

    name: str = "blip2_image_eval"
    """Registered name of the processor."""


@PROCESSORS.register("blip_caption")
@dataclass(kw_only=True)
class CaptionSettings(ProcessorSettings):
    """How a caption is cleaned."""

    name: str = "blip_caption"
    """Registered name of the processor."""
    prompt: str = ""
    """Text put before every caption."""
    max_words: int = 50
    """Words kept of a caption."""

    def __post_init__(self) -> None:
        """Check the values; see `ConfigError`."""
        at_least(self, 1, "max_words")

    def build(self) -> CaptionProcessor:
        """Build the processor."""
        from video_llama.processors.caption import CaptionProcessor

        return CaptionProcessor(prompt=self.prompt, max_words=self.max_words)


@PROCESSORS.register("imagebind_audio")
@dataclass(kw_only=True)
class AudioSettings(ProcessorSettings):
    """Which clips of a sound are heard, and their mel spectrograms."""

    name: str = "imagebind_audio"
    """Registered name of the processor."""
    sample_rate: int = 16000
    """Samples per second after resampling."""
    clip_duration: float = 2.0
    """Seconds of one clip."""
    clips_per_video: int = 8
    """Clips taken from one file."""
    num_mel_bins: int = 128
    """Frequency bands of the spectrogram."""
    target_length: int = 204
    """Spectrogram frames (10 ms each) of one clip; shorter ones are padded."""
    mean: float = -4.268
    """Subtracted from the log-mel values."""
    std: float = 9.138
    """Divides what is left."""
    channels: str = "first"
    """`first` hears the first channel only, as the original did; `mean` hears the mean of all."""

    def __post_init__(self) -> None:
        """Check the values; see `ConfigError`."""
        if self.channels not in CHANNELS:
            hint = suggestion(self.channels, list(CHANNELS))
            raise ConfigError(f"channels: unknown choice {self.channels!r}; {hint}")
        at_least(self, 1000, "sample_rate")
        at_least(self, 0.025, "clip_duration")
        at_least(self, 1, "clips_per_video", "num_mel_bins", "target_length")
        at_most(self, MAX_MEDIA, "clips_per_video", "num_mel_bins")
        at_most(self, MAX_WIDTH, "target_length")
        at_most(self, 1_000_000, "sample_rate")
        if not math.isfinite(self.mean):
            raise ConfigError(f"mean: {self.mean} given, a finite number expected")
        if not (math.isfinite(self.std) and self.std > 0):
            raise ConfigError(f"std: {self.std} given, a number above 0 expected")
        # The original cut what did not fit without saying so.
        frames = self.clip_frames
        if frames > self.target_length:
            raise ConfigError(
                f"clip_duration: {self.clip_duration:g} s make {frames} spectrogram frames, "
                f"at most target_length ({self.target_length}) expected; the rest would be lost"
            )

    @property
    def clip_samples(self) -> Fraction:
        """Samples of one clip as an exact fraction (0.3333 s at 16 kHz is no whole number)."""
        return Fraction(str(self.clip_duration)) * self.sample_rate

    @property
    def clip_frames(self) -> int:
        """Spectrogram frames of one clip: windows of 25 ms every 10 ms that fit in whole."""
        # As torchaudio rounds them.
        window, shift = int(self.sample_rate * 0.025), int(self.sample_rate * 0.01)
        return max(0, 1 + (int(self.clip_samples) - window) // shift)

    def build(self, start: float = 0.0, end: float | None = None) -> AudioProcessor:
        """Build the processor, for the part of a sound between two times in seconds."""
        from video_llama.processors.audio import AudioProcessor

        return AudioProcessor(self, start=start, end=end)


def _three(settings: object, name: str) -> tuple[float, float, float]:
    """Return red, green and blue of a setting; three finite numbers are required."""
    # NaN passes every comparison with a limit, so it is asked for by name.
    values = getattr(settings, name)
    if len(values) != 3 or not all(math.isfinite(value) for value in values):
        raise ConfigError(f"{name}: {list(values)} given, three finite numbers expected")
    red, green, blue = map(float, values)
    return red, green, blue
