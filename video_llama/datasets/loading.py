"""Whole batches by the number of the step, and a loader that reads them ahead.

A batch depends on seed, step and rank only, so a run resumes at any step, with any number of
workers, and there is nothing to save.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader

from video_llama.datasets.batches import Batches, EvalBatches, TrainBatches
from video_llama.datasets.building import build_items
from video_llama.datasets.conversation import Template
from video_llama.datasets.feature_cache import FeatureCache
from video_llama.datasets.items import Items
from video_llama.datasets.settings import DatasetSettings
from video_llama.types import Batch, ConfigError, VideoLlamaError

__all__ = [
    "EvalBatches",
    "LoadingError",
    "TrainBatches",
    "build_eval_batches",
    "build_train_batches",
    "make_loader",
]

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


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
