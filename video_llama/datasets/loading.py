"""From the `datasets` section to batches, and a loader that reads them with several processes."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils.data import DataLoader

from video_llama.datasets.base import DatasetSettings, SplitInfo
from video_llama.datasets.batches import Batches, EvalBatches, TrainBatches
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


LOADER_FAILED = ("DataLoader timed out", "exited unexpectedly", "killed by signal")
"""What torch says of a worker that hung or died."""

FINGERPRINT_IDS = 1000
"""Most ids that `fingerprint` looks at."""

FINGERPRINT_LENGTHS = 1 << 20
"""Text lengths that it takes at a time."""


class LoadingError(VideoLlamaError):
    """A data worker that hung or died; names the items that the workers were busy with."""


def build_items(
    name: str,
    settings: DatasetSettings,
    *,
    split: str,
    tokenizer: PreTrainedTokenizerFast,
    template: Template,
    features: FeatureCache | None = None,
) -> Items | None:
    """Return the items of a split of a data set; None if it has no such split.

    Args:
        name: registered name of the data set.
        settings: its entry, completed by `load_config`.
        split: `train`, `valid` or `test`.
        tokenizer: made by `load_tokenizer`.
        features: cache of what the frozen encoders make of the media.

    Raises:
        ConfigError: the annotation or the entry cannot be used; names the entry.
    """
    try:
        # The processors first: a mistake in the YAML shows before a large annotation is read.
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
    """Read the annotated items, from webdataset tars or from files.

    Raises:
        ConfigError: they cannot be read.
    """
    if info.shards is None:
        return settings.read(info)
    return ShardRecords(expand_shards(info.shards), has_conversations=settings.has_conversations)


def media_loader(
    settings: DatasetSettings, *, split: str, features: FeatureCache | None = None
) -> MediaLoader:
    """Return the loader of the media; pictures come before sound where both have a processor.

    Raises:
        ConfigError: there is no processor, or one for another kind of media.
    """
    # The Chinese set was trained without the times of frames.
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
    # Sound is asked for by leaving the pictures out: most sets of clips have processors of both.
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


def build_train_batches(
    settings: dict[str, DatasetSettings],
    *,
    split: str = "train",
    tokenizer: PreTrainedTokenizerFast,
    template: Template,
    features: FeatureCache | None = None,
    **keys: Any,
) -> TrainBatches:
    """Return the training batches of the `datasets` section, from name to entry.

    Arguments as in `build_items` and `TrainBatches`. A cache of features needs some `num_views`.

    Raises:
        ConfigError: no data set has the split, or an annotation cannot be used.
    """
    # Sets without the split drop out, and ratios are those of the sets that are left. Without any
    # ratio all are drawn alike, whatever their sizes.
    sources = _sources(settings, split, tokenizer, template, features)
    entries = [settings[source.name] for source in sources]
    ratios = [1.0 if entry.sample_ratio is None else entry.sample_ratio for entry in entries]
    if not sum(ratios):
        raise ConfigError(f"datasets: sample_ratio is 0 in every data set with a {split} split")
    buckets = [entry.bucket_batches for entry in entries]
    return TrainBatches(sources, ratios=ratios, bucket_batches=buckets, **keys)


def build_eval_batches(
    settings: dict[str, DatasetSettings],
    *,
    split: str,
    tokenizer: PreTrainedTokenizerFast,
    template: Template,
    features: FeatureCache | None = None,
    **keys: Any,
) -> EvalBatches:
    """Return the evaluation batches; arguments as in `build_train_batches` and `EvalBatches`.

    Raises:
        ConfigError: no data set has the split, or an annotation cannot be used.
    """
    return EvalBatches(_sources(settings, split, tokenizer, template, features), **keys)


def make_loader(
    batches: Batches,
    *,
    start: int,
    stop: int,
    num_workers: int,
    timeout: float = 0.0,
    pins: bool = False,
) -> Iterator[Batch]:
    """Read the batches from `start` to `stop` (exclusive) in order, some before they are needed.

    Args:
        batches: training or evaluation batches.
        num_workers: loading processes; 0 loads in this one.
        timeout: longest wait for a batch of a worker, seconds; 0 waits for ever.
        pins: put batches into memory from which a GPU copies while it computes.

    Raises:
        LoadingError: a worker hung or died; names the items that the workers were busy with.
    """
    # Whole batches come from the data set, by number: torch neither samples nor collates.
    loader: DataLoader[Batch] = DataLoader(
        batches,
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
        if any(words in str(error) for words in LOADER_FAILED):
            reason = f"{error} {error.__cause__}"  # the cause has the signal of a dead worker
            raise LoadingError(_loading_error(batches, timeout, reason)) from error
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
    keys: dict[str, Any] = {"tokenizer": tokenizer, "template": template, "features": features}
    found = [build_items(name, entry, split=split, **keys) for name, entry in settings.items()]
    sources = [items for items in found if items is not None]
    if not sources:
        key = "build_info" if split == "train" else f"build_info.{split}"
        names = ", ".join(settings) or "none is configured"
        raise ConfigError(
            f"datasets: no data set has a {split} split ({names}); set {key}.anno_dir or "
            f"{key}.storage of one"
        )
    return sources


def _loading_error(batches: Batches, timeout: float, reason: str) -> str:
    # Known from shared memory: the worker itself cannot be asked any more.
    busy = []
    for worker, number, index, seconds in batches.status.busy():
        source = batches.sources[number]
        try:
            item = str(source.records.locate(index)[1])
        except VideoLlamaError as error:
            item = f"item {index} ({error})"
        busy.append(f"worker {worker}: {source.name} {item}, for {seconds:.0f} s")
    if "Bus error" in reason:
        # torch blames the shared memory for it.
        return (
            "a data worker died of a bus error: a file that was mapped into memory (the index of a "
            "tar, or a table in the cache) was cut short, or the shared memory (/dev/shm) is full; "
            f"busy with {'; '.join(busy) or 'nothing that is known'}. Start again: a cut index is "
            "made anew"
        )
    return (
        f"no batch came within run.data_timeout ({timeout:g} s), or a data worker died; busy with "
        f"{'; '.join(busy) or 'nothing that is known'}. Take the item out of its annotation, or "
        "raise run.data_timeout if the storage is slow"
    )


def fingerprint(records: Records) -> str:
    """Return what tells an annotation from a changed one: the number of items and a hash.

    It is of the lengths of all texts and of evenly spread ids. That of files and of tars that hold
    them is the same, so that a run may go on from either.
    """
    # Ids of millions of items take minutes to hash. Lengths lie in memory, and they change with
    # nearly any change of the texts.
    count = len(records)
    digest = hashlib.blake2b(digest_size=8)
    for start in range(0, count, FINGERPRINT_LENGTHS):
        lengths = records.lengths(np.arange(start, min(start + FINGERPRINT_LENGTHS, count)))
        digest.update(lengths.astype("<i8").tobytes())
    for index in range(0, count, max(1, -(-count // FINGERPRINT_IDS))):
        digest.update(repr(records.locate(index)[0]).encode("utf-8", "surrogatepass"))
    return f"{count} items ({digest.hexdigest()})"
