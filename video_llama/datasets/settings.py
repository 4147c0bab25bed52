"""Every key of an entry of the `datasets` section, with its default and its meaning. Torch-free.

An entry is filed under the registered name of its data set; processor nodes name theirs.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from video_llama.checks import at_least
from video_llama.processors.settings import (
    AudioSettings,
    CaptionSettings,
    ImageTrainSettings,
    PictureSettings,
    VideoTrainSettings,
)
from video_llama.registry import Registry
from video_llama.types import ConfigError

DATASETS: Registry[type[DatasetSettings]] = Registry("data set")
"""The name of an entry to the class of its settings."""


@dataclass(kw_only=True)
class BuildInfo:
    """Where the annotations and the media lie; which of the three is needed, the data set says."""

    anno_dir: str | None = None
    """Annotation file, or the folder of the annotation files."""
    videos_dir: str | None = None
    """Folder of the media that the annotations name."""
    storage: str | None = None
    """Folder that holds both, or the braces pattern of webdataset tars."""

    def require(self, key: Literal["anno_dir", "videos_dir", "storage"]) -> str:
        """The value of `key`, for a data set that cannot do without.

        Raises:
            ConfigError: it is not set.
        """
        value: str | None = getattr(self, key)
        if not value:
            raise ConfigError(f"build_info.{key} is not set; this data set cannot be read without")
        return value

    def require_path(self, key: Literal["anno_dir", "videos_dir", "storage"]) -> Path:
        """The same as a path.

        Raises:
            ConfigError: it is not set.
        """
        return Path(self.require(key))


@dataclass(kw_only=True)
class VisProcessors:
    """The processors of pictures and clips."""

    train: PictureSettings | None = None
    """For the training splits, and for the chat; null: none."""
    eval: PictureSettings | None = None
    """For the validation and test splits; null: that of train."""


@dataclass(kw_only=True)
class TextProcessors:
    """The processors of captions."""

    train: CaptionSettings | None = field(default_factory=CaptionSettings)
    """For the training splits; null: captions stay as they are."""
    eval: CaptionSettings | None = None
    """For the validation and test splits; null: that of train."""


@dataclass(kw_only=True)
class AudioProcessors:
    """The processors of sound."""

    train: AudioSettings | None = None
    """For the training splits, and for the chat; null: a data set yields no sound."""
    eval: AudioSettings | None = None
    """For the validation and test splits; null: that of train."""


def _pictures() -> VisProcessors:
    return VisProcessors(train=ImageTrainSettings())


def _clips() -> VisProcessors:
    return VisProcessors(train=VideoTrainSettings())


@dataclass(kw_only=True)
class DatasetSettings:
    """One entry of the `datasets` section."""

    has_conversations: ClassVar[bool] = False
    """Whether the items are tokenised conversations, which hold the media positions."""

    data_type: str = "images"
    """Kind of media: image(s) or video(s); `cn` in it leaves the frame times out of the text."""
    build_info: BuildInfo = field(default_factory=BuildInfo)
    """Where the data lies."""
    vis_processor: VisProcessors = field(default_factory=_pictures)
    """Processors of pictures and clips."""
    text_processor: TextProcessors = field(default_factory=TextProcessors)
    """Processors of captions."""
    audio_processor: AudioProcessors = field(default_factory=AudioProcessors)
    """Processors of sound."""
    sample_ratio: float | None = None
    """How often this set is drawn, relative to the others; null in all sets: all alike."""

    model_type: Literal["auto", "vicuna", "llama_v2"] = "auto"
    """Conversation format, that of the model; auto: taken from it. After loading never auto."""
    tokenizer_name: str | None = None
    """Folder of the tokenizer; null: model.llama_model."""
    num_video_query_token: int | None = None
    """Media positions in a conversation; null: the queries of the branch that trains."""
    max_length: int = 512
    """Longest conversation, tokens."""

    def __post_init__(self) -> None:
        at_least(self, 0, "sample_ratio")
        at_least(self, 1, "num_video_query_token", "max_length")
        if not self.data_type.startswith(("image", "video")):
            raise ConfigError(
                f"data_type: {self.data_type!r} given, "
                "image, images, video or videos (with cn at the end: Chinese) expected"
            )


@DATASETS.register("cc_sbu_align")
@dataclass(kw_only=True)
class CcSbuAlignSettings(DatasetSettings):
    """Pictures with long captions (MiniGPT-4's stage 2; LLaVA-CC3M in the same layout)."""


@DATASETS.register("cc_sbu")
@dataclass(kw_only=True)
class CcSbuSettings(DatasetSettings):
    """Pictures with short captions in webdataset tars (Conceptual Captions, SBU)."""


@DATASETS.register("laion")
@dataclass(kw_only=True)
class LaionSettings(DatasetSettings):
    """Pictures with short captions in webdataset tars (LAION)."""


@DATASETS.register("llava_instruct")
@dataclass(kw_only=True)
class LlavaInstructSettings(DatasetSettings):
    """Conversations about pictures (LLaVA)."""

    has_conversations: ClassVar[bool] = True
    """As in `DatasetSettings`."""


@dataclass(kw_only=True)
class VideoDatasetSettings(DatasetSettings):
    """What the data sets of clips share."""

    data_type: str = "video"
    """As in `DatasetSettings`."""
    vis_processor: VisProcessors = field(default_factory=_clips)
    """As in `DatasetSettings`."""


@DATASETS.register("webvid")
@dataclass(kw_only=True)
class WebvidSettings(VideoDatasetSettings):
    """Clips with short captions (WebVid)."""


@DATASETS.register("webvid_instruct")
@dataclass(kw_only=True)
class WebvidInstructSettings(VideoDatasetSettings):
    """Conversations about clips (VideoChat)."""

    has_conversations: ClassVar[bool] = True
    """As in `DatasetSettings`."""


@DATASETS.register("webvid_instruct_zh")
@dataclass(kw_only=True)
class WebvidInstructZhSettings(VideoDatasetSettings):
    """Conversations about clips, in Chinese."""

    has_conversations: ClassVar[bool] = True
    """As in `DatasetSettings`."""
    data_type: str = "video_cn"
    """As in `DatasetSettings`."""
