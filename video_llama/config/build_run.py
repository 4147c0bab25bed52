"""Build a run from a configuration: model, data, hooks and folder, in every process.

Here is also the cache of frozen features, because it needs the model and the data sets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from video_llama.config.build import resolve_device
from video_llama.config.schema import Config, check_trainable
from video_llama.datasets.features import FeatureCache, Features
from video_llama.datasets.loading import (
    build_eval_batches,
    build_train_batches,
    fingerprint,
    make_loader,
)
from video_llama.models.build import build_video_llama, compile_blocks
from video_llama.models.generation.labelled import answer_batch
from video_llama.models.llama_training import allow_packing, recompute_activations
from video_llama.models.lora import (
    ADAPTER,
    adapter_hash,
    lora_parameters,
    read_adapter,
    save_adapter,
)
from video_llama.models.settings import WEIGHT_KEYS
from video_llama.models.video_llama import VideoLlama
from video_llama.models.weights.save import Manifest, describe_branch, save_branch
from video_llama.processors.settings import VideoSettings
from video_llama.runners.checkpoints import Checkpoint, CheckpointStore, find_checkpoint
from video_llama.runners.distributed import ProcessGroup, shard_language_model
from video_llama.runners.folder import RunFolder, describe_run, new_run_folder
from video_llama.runners.hooks import (
    Evaluate,
    Hook,
    JsonLog,
    LearningRate,
    Progress,
    SaveCheckpoints,
    Throughput,
    Tracker,
)
from video_llama.runners.optim import LORA, build_accelerator
from video_llama.runners.runner import Runner
from video_llama.runners.safeguards import BadItems, LossGuard, StopOnSignal
from video_llama.runners.settings import RunSettings
from video_llama.runners.state import RunComponents
from video_llama.runners.task import TASKS, Answer
from video_llama.text.questions import caption_prompts
from video_llama.text.templates import TEMPLATES
from video_llama.types import Batch, CachedFeatures, ConfigError

FREE_RUN_KEYS = (
    *("lora_lr", "lr_sched", "init_lr", "min_lr", "warmup_lr", "warmup_steps", "lr_decay_rate"),
    *("weight_decay", "beta2", "grad_clip", "amp", "max_epoch", "iters_per_epoch"),
)
FIXED_RUN_KEYS = ("task", "seed", "batch_size_train", "accum_grad_iters", "train_splits")
FREE_MODEL_KEYS = (
    *WEIGHT_KEYS,
    *("weights", "lora_ckpt", "prompt_path", "precision", "vit_precision", "imagebind_precision"),
    *("quantization", "low_resource", "llm_device_map", "use_grad_checkpoint", "random_init"),
)
FREE_DATA_KEYS = ("build_info", "tokenizer_name")
"""Keys that may differ in a resumed run, with a warning, and those of `run` that may not.

All other keys of `model` and `datasets` may not; the other keys of `run` do not matter."""

FEATURE_FORMAT = 1
"""Raised when the transforms of the media or the encoders compute something else."""


def build_runner(cfg: Config, *, name: str) -> Runner:
    """Build everything that a run needs; the same call in every process of torchrun.

    Args:
        cfg: of `load_config`.
        name: what the run's folder is called, before the time.

    Returns:
        A runner at the first step, or at that of the checkpoint to resume.

    Raises:
        ConfigError: the configuration cannot be trained or evaluated, or not resumed.
    """
    run = cfg.run
    check_trainable(cfg)
    processes = ProcessGroup(resolve_device(run.device))
    # One process chooses the folder, or each would make its own.
    path, checkpoint = processes.on_main(lambda: _run_folder(run, name))
    folder = RunFolder(path)
    processes.on_main(folder.claim)
    try:
        return _runner_in(folder, cfg, processes, checkpoint)
    except BaseException:
        folder.discard()  # a folder in which nothing has run yet would only be in the way
        raise


def _runner_in(
    folder: RunFolder, cfg: Config, processes: ProcessGroup, checkpoint: Checkpoint | None
) -> Runner:
    run, path = cfg.run, folder.path
    torch.backends.cudnn.deterministic = True  # a resumed run gives the same bits
    accelerator = build_accelerator(run, device=processes.device, folder=path)
    components = _build_components(cfg, _build_model(cfg, processes), processes)
    hooks = _build_hooks(run, components, path)
    runner = Runner(
        run,
        components=components,
        processes=processes,
        accelerator=accelerator,
        folder=folder,
        hooks=hooks,
    )
    if checkpoint is not None:
        runner.resume(checkpoint)
    step, size = checkpoint.step if checkpoint else 0, processes.size
    processes.on_main(
        lambda: describe_run(path, config=components.config, step=step, world_size=size)
    )
    return runner


def _run_folder(run: RunSettings, name: str) -> tuple[Path, Checkpoint | None]:
    """Return the run's folder and the checkpoint to resume: an evaluation gets a new folder."""
    output_dir = Path(run.output_dir)
    resume = run.resume_ckpt_path
    checkpoint = find_checkpoint(resume, output_dir) if resume else None
    if checkpoint is not None and not run.evaluate:
        return checkpoint.path.parent.parent, checkpoint
    return new_run_folder(output_dir, name), checkpoint


def _build_model(cfg: Config, processes: ProcessGroup) -> VideoLlama:
    sharded = cfg.run.fsdp and processes.size > 1
    # What is to be sharded may not fit on one GPU: it is read into host memory first.
    model = build_video_llama(
        cfg.model,
        device=str(processes.device),
        seed=cfg.run.seed,
        llm_device="cpu" if sharded else None,
    )
    model.configuration = cfg
    if cfg.model.use_grad_checkpoint:
        recompute_activations(model.language_model)
    if cfg.run.packing:
        allow_packing(model.language_model)
    # After recomputation, which wraps the same layers.
    compile_blocks(model, cfg.run.compile)
    if sharded:
        shard_language_model(
            model.language_model, device=processes.device, num_processes=processes.size
        )
    return model


def _build_components(cfg: Config, model: VideoLlama, processes: ProcessGroup) -> RunComponents:
    run = cfg.run
    cache = open_feature_cache(cfg, model)
    # Batches are a function of seed, rank and number of processes, and of nothing else.
    data: dict[str, Any] = {
        "tokenizer": model.tokenizer,
        "template": TEMPLATES.get(cfg.model.template),
        "prompts": _prompts(cfg),
        "seed": run.seed,
        "rank": processes.rank,
        "world_size": processes.size,
        "features": cache,
    }
    load: dict[str, Any] = {
        "num_workers": run.num_workers,
        "timeout": run.data_timeout,
        "pins": processes.device.type == "cuda",
    }
    sizes = {"train": run.batch_size_train, "eval": run.batch_size_eval}

    # The runner asks for batches by step, so that a resumed run begins in the middle of an epoch.
    def train_batches(start: int, stop: int) -> Iterator[Batch]:
        loader = make_loader(train, start=start, stop=stop, **load)
        return with_features(loader, cache, model)

    def eval_batches(split: str) -> Iterator[Batch]:
        batches = evaluated[split]
        loader = make_loader(batches, start=0, stop=len(batches), **load)
        return with_features(loader, cache, model)

    # Read now, so that a mistake in them shows before the first epoch is over.
    evaluated = {
        split: build_eval_batches(cfg.datasets, split=split, batch_size=sizes["eval"], **data)
        for split in run.valid_splits + run.test_splits
    }
    items = {}  # what a resumed run compares the annotations with
    if not run.evaluate:
        train = build_train_batches(
            cfg.datasets,
            split=run.train_splits[0],
            batch_size=sizes["train"],
            # A cache can only hold so many crops of an item: without one each epoch has its own.
            num_views=0 if cache is None else run.num_views,
            **data,
        )
        items = {f"datasets.{s.name} (annotation)": fingerprint(s.records) for s in train.sources}
    return RunComponents(
        task=TASKS.get(run.task)(model, partial(_answers, model)),
        trainable=_trainable(model),
        train_batches=train_batches,
        eval_batches={split: partial(eval_batches, split) for split in evaluated},
        data_sets=list(cfg.datasets),
        write_branch=partial(_write_branch, cfg, model),
        read_adapter=lambda folder: (
            read_adapter(folder / ADAPTER) if cfg.model.trains_adapter else {}
        ),
        identity=identity(cfg, processes.size) | {"items": items},
        config=cfg.to_yaml(),
    )


def _trainable(model: VideoLlama) -> list[tuple[str, nn.Parameter]]:
    """List the branch's parameters, then those of an adapter, under the names of their files."""
    branch = [pair for pair in model.trainable_parameters() if LORA not in pair[0]]
    adapter = lora_parameters(model.language_model)
    return [*branch, *((name, p) for name, p in adapter if p.requires_grad)]


def _write_branch(cfg: Config, model: VideoLlama, path: Path, step: int) -> None:
    """Write the branch file, and before it the adapter, which its manifest names."""
    adapter = adapter_hash(cfg.model.lora_ckpt)
    if cfg.model.trains_adapter:
        adapter = save_adapter(model.language_model, cfg.model, path.parent / ADAPTER)
    branch = (pair for pair in model.trainable_parameters() if LORA not in pair[0])
    save_branch(branch, path, replace(_manifest(cfg, model, step), adapter=adapter))


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
    # A stage-1 branch only describes: the chat warns when it is given one.
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
    """Return what decides whether a resumed run is the same run; see `check_unchanged`."""
    fixed: dict[str, Any] = {"number of processes": world_size}
    free: dict[str, Any] = {}
    # Paths and precision may change between two machines. What changes the weights that train, or
    # the items in a batch, may not.
    for key, value in asdict(cfg.model).items():
        # Without an adapter they decide nothing, and runs of older versions do not know them.
        if not key.startswith("lora_") or cfg.model.lora_r or cfg.model.lora_ckpt:
            (free if key in FREE_MODEL_KEYS else fixed)[f"model.{key}"] = value
    for name, entry in cfg.datasets.items():
        for key, value in asdict(entry).items():
            (free if key in FREE_DATA_KEYS else fixed)[f"datasets.{name}.{key}"] = value
    for keys, kind in ((FREE_RUN_KEYS, free), (FIXED_RUN_KEYS, fixed)):
        kind |= {f"run.{key}": getattr(cfg.run, key) for key in keys}
    if cfg.run.feature_cache:  # its views are other crops than those of a run without
        fixed |= {"run.feature_cache": "some folder", "run.num_views": cfg.run.num_views}
    return {"fixed": fixed, "free": free}


def _build_hooks(run: RunSettings, components: RunComponents, folder: Path) -> list[Hook]:
    # In the order of their work: learning rate before a step, measurements, then what writes them.
    store = CheckpointStore(folder, keep_last=run.keep_last, keep_best=run.keep_best)
    return [
        LearningRate(),
        StopOnSignal(),
        LossGuard(run.max_nonfinite_steps),
        Throughput(),
        BadItems(components.data_sets, run.max_bad_fraction),
        Evaluate(),
        JsonLog(),
        Tracker(),
        Progress(),
        SaveCheckpoints(store),
    ]


def open_feature_cache(cfg: Config, model: VideoLlama) -> FeatureCache | None:
    """Open the cache of `run.feature_cache`; None where there is none.

    The branches have a folder each in it, because their encoders differ.
    """
    if cfg.run.feature_cache is None:
        return None
    settings, folder = cfg.model, Path(cfg.run.feature_cache)
    if settings.trained_branch is None:
        raise ConfigError("run.feature_cache: given, but no branch trains; set it to null")
    if settings.trained_branch == "audio":
        norm = {"audio_feature_norm": settings.audio_feature_norm}
        key = _features_key([model.audio_encoder], asdict(settings.imagebind_config) | norm)
        return FeatureCache(folder / "imagebind", key)
    if not (settings.freeze_vit and settings.freeze_qformer):
        raise ConfigError(
            "run.feature_cache: given, but model.freeze_vit or model.freeze_qformer is false: "
            "features of what trains cannot be kept; set run.feature_cache to null"
        )
    # The encoders of the video branch give no features of a sound.
    if sounding := [n for n, d in cfg.datasets.items() if d.data_type.startswith("audio")]:
        raise ConfigError(
            f"run.feature_cache: given, but the video branch trains and datasets.{sounding[0]} is "
            "of sounds; leave it out, or set run.feature_cache to null"
        )
    sizes = asdict(settings.vit_config) | asdict(settings.qformer_config)
    key = _features_key([model.vision_encoder, model.frame_qformer], sizes)
    return FeatureCache(folder / "frame_qformer", key)


def with_features(
    batches: Iterable[Batch], cache: FeatureCache | None, model: VideoLlama
) -> Iterator[Batch]:
    """Yield batches with features in the place of media; compute and keep what the cache lacks.

    Items are encoded one by one. What is computed in batches depends in the last bit on the other
    items, and a run that is resumed would meet its items in other batches.

    `batches` come from loaders that know the cache; None leaves them as they are.
    """
    if cache is None:
        yield from batches
        return
    try:
        for batch in batches:
            if batch.cached is None:
                yield batch
                continue
            features = _complete(batch, batch.cached, cache, model)
            if model.device.type == "cuda":
                features = features.pin_memory()
            without = replace(batch, pixel_values=None, audio_values=None)
            yield replace(without, features=features, cached=None)
    finally:
        cache.flush()


def _complete(
    batch: Batch, cached: CachedFeatures, cache: FeatureCache, model: VideoLlama
) -> Tensor:
    """Return the features of a batch, (B, T, Q, D) float16."""
    there = iter(cached.values if cached.values is not None else ())
    rows, number = [], 0
    for key, seconds, is_there in zip(cached.keys, cached.seconds, cached.is_there, strict=True):
        if is_there:
            rows.append(next(there))
            continue
        found = cache.find(key) if key else None  # computed since the batch was loaded?
        if found is None:
            found = Features(_encoded(batch, number, model), tuple(seconds))
            if key:
                cache.put(key, found)
        rows.append(found.values)
        number += 1
    return torch.stack(rows)


@torch.no_grad()
def _encoded(batch: Batch, number: int, model: VideoLlama) -> Tensor:
    """Encode one of the items whose media a batch holds to (T, Q, D) float16 on the host."""
    pixels, sound = (
        None if values is None else values[number : number + 1]
        for values in (batch.pixel_values, batch.audio_values)
    )
    one = replace(batch, pixel_values=pixels, audio_values=sound)
    return model.frozen_features(one)[0].to(torch.float16).cpu()


def _features_key(encoders: Sequence[nn.Module | None], sizes: dict[str, Any]) -> dict[str, Any]:
    """Return what a folder of features is valid for: also names, types and values of weights."""
    digest = hashlib.blake2b(digest_size=16)
    for part in encoders:
        assert part is not None, "the branch that trains has its encoder"
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            content = tensor.detach().cpu().contiguous()
            digest.update(content.flatten().view(torch.uint8).numpy())
    return {"format": FEATURE_FORMAT, "weights": digest.hexdigest(), **sizes}
