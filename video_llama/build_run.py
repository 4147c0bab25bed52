"""From a configuration to a run: model, data, hooks and folder, in every process."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch

from video_llama.build import resolve_device
from video_llama.build_checks import check_trainable
from video_llama.build_features import open_feature_cache, with_features
from video_llama.config import Config
from video_llama.datasets.conversation import TEMPLATES
from video_llama.datasets.loading import build_eval_batches, build_train_batches, make_loader
from video_llama.datasets.question import caption_prompts
from video_llama.datasets.records import fingerprint
from video_llama.models.answering import answer_batch
from video_llama.models.assembly import build_video_llama
from video_llama.models.checkpoint import save_branch
from video_llama.models.compiling import compile_blocks
from video_llama.models.manifest import Manifest, describe_branch
from video_llama.models.packing import allow_packing
from video_llama.models.recompute import recompute_activations
from video_llama.models.video_llama import VideoLlama
from video_llama.processors.settings import VideoSettings
from video_llama.runners.checkpoints import Checkpoint, CheckpointStore
from video_llama.runners.folder import RunFolder, describe_run, new_run_folder
from video_llama.runners.hooks.bad_items import BadItems
from video_llama.runners.hooks.base import Hook
from video_llama.runners.hooks.checkpoint import SaveCheckpoints
from video_llama.runners.hooks.evaluate import Evaluate
from video_llama.runners.hooks.guard import Guard
from video_llama.runners.hooks.learning_rate import LearningRate
from video_llama.runners.hooks.log import JsonLog
from video_llama.runners.hooks.progress import Progress
from video_llama.runners.hooks.stop import StopOnSignal
from video_llama.runners.hooks.throughput import Throughput
from video_llama.runners.hooks.tracker import Tracker
from video_llama.runners.parts import RunParts
from video_llama.runners.precision import build_accelerator
from video_llama.runners.resume import find_checkpoint
from video_llama.runners.runner import Runner
from video_llama.runners.settings import RunSettings
from video_llama.runners.sharding import shard_language_model
from video_llama.runners.world import World
from video_llama.tasks.pretrain import TASKS, Answer
from video_llama.types import Batch, ConfigError

logger = logging.getLogger(__name__)

FREE_RUN_KEYS = (
    *("lr_sched", "init_lr", "min_lr", "warmup_lr", "warmup_steps", "lr_decay_rate"),
    *("weight_decay", "beta2", "grad_clip", "amp", "max_epoch", "iters_per_epoch"),
)
FIXED_RUN_KEYS = ("task", "seed", "batch_size_train", "accum_grad_iters", "train_splits")
FREE_MODEL_KEYS = (
    *("llama_model", "vit_ckpt", "q_former_model", "llama_proj_model", "imagebind_ckpt_path"),
    *("ckpt", "ckpt_2", "prompt_path", "precision", "vit_precision", "imagebind_precision"),
    *("quantization", "low_resource", "llm_device_map", "use_grad_checkpoint", "random_init"),
)
FREE_DATA_KEYS = ("build_info", "tokenizer_name")
"""Keys that may differ in a resumed run, with a warning, and those of `run` that may not.

All other keys of `model` and `datasets` may not; the other keys of `run` do not matter."""


def build_runner(cfg: Config, *, name: str) -> Runner:
    """Everything that a run needs; the same call in every process of torchrun.

    Args:
        cfg: of `load_config`.
        name: what the run's folder is called, before the time.

    Returns:
        A runner at the first step, or at that of the checkpoint to resume.

    Raises:
        ConfigError: the configuration cannot be trained or evaluated, or not resumed.
        WeightsError: a weight file does not fit.
    """
    run = cfg.run
    check_trainable(cfg)
    world = World(resolve_device(run.device))
    path, checkpoint = world.on_main(lambda: _run_folder(run, name))
    folder = RunFolder(path)
    world.on_main(folder.claim)
    try:
        return _runner_in(folder, cfg, world, checkpoint)
    except BaseException:
        folder.discard()
        raise


def _runner_in(
    folder: RunFolder, cfg: Config, world: World, checkpoint: Checkpoint | None
) -> Runner:
    run, path = cfg.run, folder.path
    torch.backends.cudnn.deterministic = True
    accelerator = build_accelerator(run, device=world.device, folder=path)
    parts = _build_parts(cfg, _build_model(cfg, world), world)
    hooks = _build_hooks(run, parts, path)
    runner = Runner(
        run, parts=parts, world=world, accelerator=accelerator, folder=folder, hooks=hooks
    )
    if checkpoint is not None:
        runner.resume(checkpoint)
    step = checkpoint.step if checkpoint else 0
    describe = partial(describe_run, path, config=parts.config, step=step, world_size=world.size)
    world.on_main(describe)
    return runner


def _run_folder(run: RunSettings, name: str) -> tuple[Path, Checkpoint | None]:
    """A new folder, or that of the run to go on with."""
    output_dir = Path(run.output_dir)
    if run.resume_ckpt_path:
        checkpoint = find_checkpoint(run.resume_ckpt_path, output_dir)
        if checkpoint is not None and not run.evaluate:
            return checkpoint.path.parent.parent, checkpoint
        if checkpoint is not None:
            return new_run_folder(output_dir, name), checkpoint
    return new_run_folder(output_dir, name), None


def _build_model(cfg: Config, world: World) -> VideoLlama:
    sharded = cfg.run.fsdp and world.size > 1
    model = build_video_llama(
        cfg.model,
        device=str(world.device),
        seed=cfg.run.seed,
        llm_device="cpu" if sharded else None,
    )
    model.configuration = cfg
    if cfg.model.use_grad_checkpoint:
        recompute_activations(model.language_model)
    if cfg.run.packing:
        allow_packing(model.language_model)
    compile_blocks(model, cfg.run.compile)
    if sharded:
        shard_language_model(model.language_model, device=world.device, num_processes=world.size)
    return model


def _build_parts(cfg: Config, model: VideoLlama, world: World) -> RunParts:
    run = cfg.run
    cache = open_feature_cache(cfg, model)
    data: dict[str, Any] = {
        "tokenizer": model.tokenizer,
        "template": TEMPLATES.get(cfg.model.template),
        "prompts": _prompts(cfg),
        "seed": run.seed,
        "rank": world.rank,
        "world_size": world.size,
        "features": cache,
    }
    load: dict[str, Any] = {
        "num_workers": run.num_workers,
        "timeout": run.data_timeout,
        "pins": world.device.type == "cuda",
    }
    sizes = {"train": run.batch_size_train, "eval": run.batch_size_eval}

    def train_batches(start: int, stop: int) -> Iterator[Batch]:
        loader = make_loader(train, start=start, stop=stop, **load)
        return with_features(loader, cache, model)

    def eval_batches(split: str) -> Iterator[Batch]:
        batches = evaluated[split]
        loader = make_loader(batches, start=0, stop=len(batches), **load)
        return with_features(loader, cache, model)

    evaluated = {  # read now, so that a mistake shows before the first epoch is over
        split: build_eval_batches(cfg.datasets, split=split, batch_size=sizes["eval"], **data)
        for split in run.valid_splits + run.test_splits
    }
    items = {}
    if not run.evaluate:
        train = build_train_batches(
            cfg.datasets,
            split=run.train_splits[0],
            batch_size=sizes["train"],
            num_views=0 if cache is None else run.num_views,
            **data,
        )
        items = {f"datasets.{s.name} (annotation)": fingerprint(s.records) for s in train.sources}
    return RunParts(
        task=TASKS.get(run.task)(model, partial(_answers, model)),
        trainable=list(model.trainable_parameters()),
        train_batches=train_batches,
        eval_batches={split: partial(eval_batches, split) for split in evaluated},
        data_sets=list(cfg.datasets),
        write_branch=lambda path, step: save_branch(model, path, _manifest(cfg, model, step)),
        identity=identity(cfg, world.size) | {"items": items},
        config=cfg.to_yaml(),
    )


def _answers(model: VideoLlama, batch: Batch, max_new_tokens: int) -> list[Answer]:
    answers = answer_batch(model, batch, max_new_tokens=max_new_tokens)
    return [
        Answer(item_id=item_id, reference=reference, answer=answer)
        for item_id, (reference, answer) in zip(batch.item_ids, answers, strict=True)
    ]


def _prompts(cfg: Config) -> list[str]:
    path = cfg.model.prompt_path
    if not path:
        return []
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines()
    except OSError as error:
        raise ConfigError(f"model.prompt_path: {path} cannot be read: {error}") from error
    return caption_prompts(lines, cfg.model.prompt_template)


def _manifest(cfg: Config, model: VideoLlama, step: int) -> Manifest:
    entries = cfg.datasets.values()
    talks = any(entry.has_conversations for entry in entries)
    pictures = [entry.vis_processor.train for entry in entries]
    sounds = [entry.audio_processor.train for entry in entries]
    return describe_branch(
        cfg.model,
        model.language_model.config,
        stage=2 if talks or cfg.model.prompt_path else 1,
        frames=max((p.n_frms for p in pictures if isinstance(p, VideoSettings)), default=1),
        clips=max((s.clips_per_video for s in sounds if s is not None), default=0),
        step=step,
    )


def identity(cfg: Config, world_size: int) -> dict[str, Any]:
    """What decides whether a resumed run is the same run; see `check_unchanged`.

    Args:
        cfg: of the run.
        world_size: number of processes.
    """
    fixed: dict[str, Any] = {"number of processes": world_size}
    free: dict[str, Any] = {}
    for key, value in asdict(cfg.model).items():
        (free if key in FREE_MODEL_KEYS else fixed)[f"model.{key}"] = value
    for name, entry in cfg.datasets.items():
        for key, value in asdict(entry).items():
            (free if key in FREE_DATA_KEYS else fixed)[f"datasets.{name}.{key}"] = value
    for keys, kind in ((FREE_RUN_KEYS, free), (FIXED_RUN_KEYS, fixed)):
        kind |= {f"run.{key}": getattr(cfg.run, key) for key in keys}
    if cfg.run.feature_cache:  # its views are other crops than those of a run without
        fixed |= {"run.feature_cache": "some folder", "run.num_views": cfg.run.num_views}
    return {"fixed": fixed, "free": free}


def _build_hooks(run: RunSettings, parts: RunParts, folder: Path) -> list[Hook]:
    store = CheckpointStore(folder, keep_last=run.keep_last, keep_best=run.keep_best)
    return [
        LearningRate(),
        StopOnSignal(),
        Guard(run.max_nonfinite_steps),
        Throughput(),
        BadItems(parts.data_sets, run.max_bad_fraction),
        Evaluate(),
        JsonLog(),
        Tracker(),
        Progress(),
        SaveCheckpoints(store),
    ]
