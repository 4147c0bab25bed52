"""Knowing what a data worker is busy with, for when it hangs or dies.

From an entry of the `datasets` section to its items.

Whole batches by the number of the step, and a loader that reads them ahead.

A batch depends on seed, step and rank only, so a run resumes at any step, with any number of
workers, and there is nothing to save.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from video_llama.datasets.base import DatasetSettings, SplitInfo
from video_llama.datasets.batches import (
    Batches,
    EvalBatches,
    TrainBatches,
)
from video_llama.datasets.features import FeatureCache
from video_llama.datasets.items import (
    CachedMediaLoader,
    CaptionItems,
    InstructionItems,
    Items,
    MediaLoader,
    Processor,
)
from video_llama.datasets.records import Records
from video_llama.datasets.shards import ShardRecords, expand_shards
from video_llama.processors.settings import (
    AudioSettings,
    ImageSettings,
    PictureSettings,
    VideoSettings,
)
from video_llama.processors.video import VideoProcessor
from video_llama.text.templates import Template
from video_llama.types import Batch, ConfigError, VideoLlamaError

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


__all__ = [
    "EvalBatches",
    "LoadingError",
    "TrainBatches",
    "build_eval_batches",
    "build_train_batches",
    "make_loader",
]


class LoadingError(VideoLlamaError):
    """A data worker that hung or died; names the items that the workers were busy with."""


def build_train_batches(
    settings: dict[str, DatasetSettings],
    *,
    tokenizer: PreTrainedTokenizerFast,
    template: Template,
    prompts: Sequence[str] = (),
    split: str = "train",
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    features: FeatureCache | None = None,
    num_views: int = 0,
) -> TrainBatches:
    """The training batches of the `datasets` section.

    Args:
        settings: name to entry, completed by `load_config`.
        tokenizer: of the model, made by `load_tokenizer`.
        template: format of conversations, `TEMPLATES.get(model.template)`.
        prompts: `caption_prompts(lines of model.prompt_path, model.prompt_template)`, if it is set.
        split: which split to train on.
        batch_size: items per batch and rank.
        seed: of the run, the same on all ranks.
        rank: of this process.
        world_size: number of processes.
        features: cache of what the frozen encoders make of the media.
        num_views: as in `TrainBatches`; such a cache needs some.

    Raises:
        ConfigError: no data set has the split, or an annotation cannot be used.
    """
    sources = _sources(settings, split, tokenizer, template, features)
    entries = [settings[source.name] for source in sources]
    ratios = [1.0 if entry.sample_ratio is None else entry.sample_ratio for entry in entries]
    if not sum(ratios):
        raise ConfigError(f"datasets: sample_ratio is 0 in every data set with a {split} split")
    return TrainBatches(
        sources,
        ratios=ratios,
        bucket_batches=[entry.bucket_batches for entry in entries],
        prompts=prompts,
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
        num_views=num_views,
    )


def build_eval_batches(
    settings: dict[str, DatasetSettings],
    *,
    tokenizer: PreTrainedTokenizerFast,
    template: Template,
    prompts: Sequence[str] = (),
    split: str,
    batch_size: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    features: FeatureCache | None = None,
) -> EvalBatches:
    """The evaluation batches of the `datasets` section; arguments as in `build_train_batches`.

    Raises:
        ConfigError: no data set has the split, or an annotation cannot be used.
    """
    return EvalBatches(
        _sources(settings, split, tokenizer, template, features),
        prompts=prompts,
        batch_size=batch_size,
        seed=seed,
        rank=rank,
        world_size=world_size,
    )


def make_loader(
    batches: Batches,
    *,
    start: int,
    stop: int,
    num_workers: int,
    timeout: float = 0.0,
    pins: bool = False,
) -> Iterator[Batch]:
    """The batches from `start` to `stop` (exclusive) in order, read ahead by workers.

    Args:
        batches: training or evaluation batches.
        start: first batch.
        stop: batch to stop before.
        num_workers: loading processes; 0 loads in this one.
        timeout: longest wait for a batch of a worker, seconds; 0 waits for ever.
        pins: put batches into memory from which a GPU copies while it computes.

    Raises:
        LoadingError: a worker hung or died; names the items that the workers were busy with.
    """
    loader: DataLoader[Batch] = DataLoader(
        batches,  # type: ignore[arg-type]
        batch_size=None,
        sampler=range(start, stop),
        num_workers=num_workers,
        timeout=timeout if num_workers else 0,
        pin_memory=pins,
        worker_init_fn=_leave_group if num_workers else None,
        # Forked workers share the annotation; elsewhere each gets a copy.
        multiprocessing_context="fork" if num_workers and sys.platform == "linux" else None,
    )
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader timed out" in str(error) or "exited unexpectedly" in str(error):
            raise LoadingError(_accusation(batches, timeout)) from error
        raise


def _leave_group(worker: int) -> None:
    """Keep Ctrl-C and other signals to the whole group from the workers.

    The training process ends in order and still needs their batches; they end when it does.
    """
    os.setpgid(0, 0)


def _sources(
    settings: dict[str, DatasetSettings],
    split: str,
    tokenizer: PreTrainedTokenizerFast,
    template: Template,
    features: FeatureCache | None,
) -> list[Items]:
    parts: dict[str, Any] = {"tokenizer": tokenizer, "template": template, "features": features}
    found = [build_items(name, entry, split=split, **parts) for name, entry in settings.items()]
    sources = [items for items in found if items is not None]
    if not sources:
        key = "build_info" if split == "train" else f"build_info.{split}"
        names = ", ".join(settings) or "none is configured"
        raise ConfigError(
            f"datasets: no data set has a {split} split ({names}); set {key}.anno_dir or "
            f"{key}.storage of one"
        )
    return sources


def _accusation(batches: Batches, timeout: float) -> str:
    busy = [
        f"worker {worker}: {_name(batches, number, index)}, for {seconds:.0f} s"
        for worker, number, index, seconds in batches.watch.busy()
    ]
    return (
        f"no batch came within run.data_timeout ({timeout:g} s), or a data worker died; busy with "
        f"{'; '.join(busy) or 'nothing that is known'}. Take the item out of its annotation, or "
        "raise run.data_timeout if the storage is slow"
    )


def _name(batches: Batches, number: int, index: int) -> str:
    source = batches.sources[number]
    return f"{source.name} {source.records.locate(index)[1]}"
