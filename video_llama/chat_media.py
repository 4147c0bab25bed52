"""Media of a chat: decoded, encoded once, and described for the prompt and for people."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor

from video_llama.config import Config
from video_llama.datasets.conversation import Media, frames_message
from video_llama.models.video_llama import VideoLlama
from video_llama.processors.media import probe
from video_llama.processors.settings import (
    AudioSettings,
    ImageEvalSettings,
    VideoEvalSettings,
    VideoSettings,
)
from video_llama.types import ConfigError, RequestError

Kind = Literal["video", "image", "audio"]


@dataclass(frozen=True)
class MediaProcessing:
    """How a chat reads files.

    Attributes:
        video: frames of a clip.
        image: pictures.
        audio: sounds.
    """

    video: VideoEvalSettings
    image: ImageEvalSettings
    audio: AudioSettings

    @classmethod
    def of(cls, model: VideoLlama) -> MediaProcessing:
        """What the model's configuration says, or the original's chat where it says nothing."""
        size = model.settings.image_size
        video = VideoEvalSettings(image_size=size)
        audio = AudioSettings(clips_per_video=min(8, model.settings.max_audio_clips))
        cfg: Config | None = model.configuration
        for entry in cfg.datasets.values() if cfg else ():
            pictures = entry.vis_processor.eval or entry.vis_processor.train
            if isinstance(pictures, VideoSettings):
                shared = {key: getattr(pictures, key) for key in vars(video) if key != "name"}
                video = VideoEvalSettings(**shared)
                if video.sampling == "headtail":  # random frames are for training
                    video = replace(video, sampling="uniform")
            audio = entry.audio_processor.eval or entry.audio_processor.train or audio
        image = ImageEvalSettings(image_size=size, mean=video.mean, std=video.std)
        return cls(video, image, audio)


@dataclass
class MediaItem:
    """One file of a chat, encoded.

    Attributes:
        path: the file.
        kind: what it was taken for.
        parts: how it appears in the prompt: the sound of a clip first, then its frames.
        tokens: (1, N, D_llm) for each part.
        has_sound: whether the file has a sound track; None for a picture.
        sound_used: whether its sound is in the prompt.
        frames: (3, T, H, W) uint8 of what the model sees; None for sounds.
        frame_seconds: when each frame is shown.
        spectrograms: (S, 1, mel, frames) of what the model hears; None without sound.
        sound_spans: begin and end of each sound segment, in seconds.
        notice: what the user should know about the file; empty if nothing.
        timings: seconds spent decoding and encoding.
    """

    path: Path
    kind: Kind
    parts: list[Media] = field(default_factory=list)
    tokens: list[Tensor] = field(default_factory=list, repr=False)
    has_sound: bool | None = None
    sound_used: bool = False
    frames: Tensor | None = field(default=None, repr=False)
    frame_seconds: list[float] = field(default_factory=list)
    spectrograms: Tensor | None = field(default=None, repr=False)
    sound_spans: list[tuple[float, float]] = field(default_factory=list)
    notice: str = ""
    timings: dict[str, float] = field(default_factory=lambda: {"decode": 0.0, "encode": 0.0})

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the block's duration to `timings[stage]`."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.timings[stage] += time.perf_counter() - start


class MediaEncoder:
    """Files to tokens of the language model.

    Args:
        model: whose branches encode.
    """

    def __init__(self, model: VideoLlama) -> None:
        self.model = model
        self.processing = MediaProcessing.of(model)

    def encode(
        self,
        path: str | Path,
        kind: Kind | None = None,
        *,
        use_audio: bool = True,
        num_frames: int | None = None,
        num_clips: int | None = None,
    ) -> MediaItem:
        """Decode and encode a file.

        Args:
            path: of a clip, picture or sound.
            kind: what to take it for; None: what it is.
            use_audio: whether the sound of a clip is heard, if it has any.
            num_frames: frames of a clip; None: as configured.
            num_clips: segments of a sound; None: as configured.

        Raises:
            MediaError: the file cannot be used.
            RequestError: a sound for a model without an audio branch.
            ConfigError: more frames or segments than the model has positions for.
        """
        info = probe(path)
        item = MediaItem(Path(path), kind or info.kind)
        if item.kind == "image":
            self._add_image(item)
            return item
        item.has_sound = info.has_audio
        hears = self.model.audio_branch is not None
        if item.kind == "audio":
            if not hears:
                raise RequestError(
                    f"{path} is a sound, but this model has no audio branch; use a configuration "
                    "with model.equip_audio_branch=true"
                )
            self._add_sound(item, num_clips)
            return item
        if use_audio and hears and info.has_audio:
            self._add_sound(item, num_clips)
        elif use_audio:
            reason = f"{item.path.name} has no sound track"
            if info.has_audio:
                reason = f"{item.path.name} has sound, but this model has no audio branch"
            item.notice = f"{reason}; the answer is from its frames only"
        self._add_video(item, num_frames)
        return item

    def _add_image(self, item: MediaItem) -> None:
        with item.timed("decode"):
            picture = self.processing.image.build()(item.path)
        item.frames = _displayable(picture, self.processing.image)[:, None]
        self._see(item, rearrange(picture, "c h w -> 1 c 1 h w"), "")

    def _add_video(self, item: MediaItem, num_frames: int | None) -> None:
        settings = self.processing.video
        if num_frames is not None:
            self._check_count("frames", num_frames, "max_frame_pos")
            settings = replace(settings, n_frms=num_frames)
        with item.timed("decode"):
            clip = settings.build()(item.path)
        item.frames, item.frame_seconds = clip.frames, clip.seconds
        self._see(item, clip.pixel_values[None], frames_message(clip.seconds))

    def _see(self, item: MediaItem, video: Tensor, message: str) -> None:
        with item.timed("encode"), torch.inference_mode():
            tokens = self.model.encode_video(video.to(self.model.device))
        kind: Literal["image", "video"] = "image" if item.kind == "image" else "video"
        item.parts.append(Media(kind, tokens.shape[1], message))
        item.tokens.append(tokens)

    def _check_count(self, things: str, count: int, limit_key: str) -> None:
        """Refuse what the model has no positions for, before it is decoded."""
        limit = getattr(self.model.settings, limit_key)
        if count > limit and not self.model.settings.interpolate_positions:
            raise ConfigError(
                f"{count} {things} given, but model.{limit_key} is {limit}; take fewer, or set "
                "model.interpolate_positions to true"
            )

    def _add_sound(self, item: MediaItem, num_clips: int | None) -> None:
        settings = self.processing.audio
        if num_clips is not None:
            self._check_count("segments of sound", num_clips, "max_audio_clips")
            settings = replace(settings, clips_per_video=num_clips)
        with item.timed("decode"):
            sound = settings.build()(item.path)
        item.spectrograms, item.sound_spans = sound.values, sound.spans
        with item.timed("encode"), torch.inference_mode():
            tokens = self.model.encode_audio(sound.values[None].to(self.model.device), "audio")
        item.parts.append(Media("audio", tokens.shape[1]))
        item.tokens.append(tokens)
        item.sound_used = True


def _displayable(picture: Tensor, settings: ImageEvalSettings) -> Tensor:
    """Undo the normalisation of (3, H, W), to uint8."""
    mean, std = (torch.tensor(values)[:, None, None] for values in (settings.mean, settings.std))
    return ((picture * std + mean) * 255).round().clamp(0, 255).to(torch.uint8)
