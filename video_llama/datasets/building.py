"""From an entry of the `datasets` section to its items."""

from __future__ import annotations

from typing import TYPE_CHECKING

from video_llama.datasets.build_info import SplitInfo
from video_llama.datasets.conversation import Template
from video_llama.datasets.feature_cache import FeatureCache
from video_llama.datasets.items import CaptionItems, InstructionItems, Items
from video_llama.datasets.media_loader import CachedMediaLoader, MediaLoader, Processor
from video_llama.datasets.records import Records
from video_llama.datasets.settings import DatasetSettings
from video_llama.datasets.shards import ShardRecords, expand_shards
from video_llama.processors.settings import (
    AudioSettings,
    ImageSettings,
    PictureSettings,
    VideoSettings,
)
from video_llama.processors.video import VideoProcessor
from video_llama.types import ConfigError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


def build_items(
    name: str,
    settings: DatasetSettings,
    *,
    split: str,
    tokenizer: PreTrainedTokenizerFast,
    template: Template,
    features: FeatureCache | None = None,
) -> Items | None:
    """The items of a split of a data set; None if it has no such split.

    Args:
        name: registered name of the data set.
        settings: its entry, completed by `load_config`.
        split: `train`, `valid` or `test`.
        tokenizer: made by `load_tokenizer`.
        template: format of conversations.
        features: cache of what the frozen encoders make of the media.

    Raises:
        ConfigError: the annotation or the entry cannot be used; names the entry.
    """
    try:
        info = settings.build_info.split(split)
        if info is None:
            return None
        loader = media_loader(settings, split=split, features=features)
        records = read_records(settings, info)
        if not settings.has_conversations:
            text = settings.text_processor
            words = text.train if split == "train" else text.eval or text.train
            clean = words.build() if words and settings.cleans_captions else None
            return CaptionItems(name, records, loader, clean=clean)
        if settings.num_video_query_token is None:
            raise ConfigError("num_video_query_token: null given, a number expected")
    except ConfigError as error:
        raise ConfigError(f"datasets.{name}: {error}") from error
    return InstructionItems(
        name,
        records,
        loader,
        template=template,
        tokenizer=tokenizer,
        num_media_tokens=settings.num_video_query_token,
        max_length=settings.max_length,
    )


def read_records(settings: DatasetSettings, info: SplitInfo) -> Records:
    """The annotated items, from webdataset tars or from files.

    Raises:
        ConfigError: they cannot be read.
    """
    if info.shards is None:
        return settings.read(info)
    return ShardRecords(expand_shards(info.shards), has_conversations=settings.has_conversations)


def media_loader(
    settings: DatasetSettings, *, split: str, features: FeatureCache | None = None
) -> MediaLoader:
    """The loader of the media; pictures come before sound where both have a processor.

    Args:
        settings: of the data set.
        split: `train`, `valid` or `test`.
        features: as in `build_items`.

    Raises:
        ConfigError: there is no processor, or one for another kind of media.
    """
    processor = _processor(settings, split)
    moves = isinstance(processor, VideoProcessor)
    message = moves and "cn" not in settings.data_type
    if features is None:
        return MediaLoader(processor, with_message=message)
    return CachedMediaLoader(processor, with_message=message, cache=features)


def _processor(settings: DatasetSettings, split: str) -> Processor:
    pictures, sounds = settings.vis_processor, settings.audio_processor
    vis: PictureSettings | None = pictures.train
    audio: AudioSettings | None = sounds.train
    if split != "train":
        vis, audio = pictures.eval or pictures.train, sounds.eval or sounds.train
    if vis is None and audio is not None:
        return audio.build()
    if isinstance(vis, VideoSettings) and settings.data_type.startswith("video"):
        sampling = settings.train_sampling if split == "train" else "uniform"
        return vis.build(auto_sampling=sampling)
    if isinstance(vis, ImageSettings) and settings.data_type.startswith("image"):
        return vis.build()
    if vis is None:
        raise ConfigError(
            f"vis_processor.{split}: null given, and audio_processor.{split} too; give one of them"
        )
    raise ConfigError(
        f"vis_processor.train.name: {vis.name} given, but data_type is {settings.data_type}: "
        "alpro_video_* is for video, blip2_image_* for images"
    )
