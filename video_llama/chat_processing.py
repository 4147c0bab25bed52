"""How a chat reads files: as configured, or as the original did."""

from __future__ import annotations

from dataclasses import dataclass, replace

from video_llama.config import Config
from video_llama.models.video_llama import VideoLlama
from video_llama.processors.settings import (
    AudioSettings,
    ImageEvalSettings,
    VideoEvalSettings,
    VideoSettings,
)


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
