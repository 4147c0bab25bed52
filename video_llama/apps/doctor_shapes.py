"""Look into the files of a configuration for `doctor`: annotations, shapes, and memory."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from video_llama.apps.doctor import data_splits
from video_llama.apps.estimate.memory import (
    GRADIENT_BYTES,
    OPTIMISER_BYTES,
    PartWeights,
    llm_bytes,
    part_weights,
    trained_parameters,
)
from video_llama.apps.estimate.report import rendered, table
from video_llama.config.build import resolve_device
from video_llama.config.schema import Config
from video_llama.datasets.base import SplitInfo
from video_llama.datasets.shards import expand_shards
from video_llama.models.build import build_video_llama, missing_groups, weight_sources
from video_llama.models.language_model import has_weights
from video_llama.models.lora import add_adapter, fitting_tensors
from video_llama.models.video_llama import VideoLlama
from video_llama.models.weights.files import WeightFile, open_weights
from video_llama.models.weights.load import match, open_source
from video_llama.models.weights.report import ValueCheck
from video_llama.text.tokenizer import load_tokenizer
from video_llama.types import ConfigError, VideoLlamaError, WeightsError

MAX_ANNOTATION_BYTES = 50_000_000
"""Annotations larger than this are not read: that is for `video-llama data check`."""


def examine(cfg: Config) -> tuple[list[str], VideoLlama | None]:
    """Find what only torch and the readers of the data sets can see, where all paths are there.

    Returns:
        The problems, and the model in shapes; None if not even that can be made.
    """
    problems = []
    try:
        resolve_device(cfg.run.device)
    except VideoLlamaError as error:
        problems.append(str(error))
    problems += annotation_problems(cfg)
    # Without a tokenizer or a model in shapes there is nothing to compare files with.
    try:
        load_tokenizer(cfg.model.llama_model)
    except VideoLlamaError as error:
        return [*problems, f"model.llama_model: {error}"], None
    try:
        model = build_video_llama(cfg.model, device="meta", seed=0)
    except VideoLlamaError as error:
        return [*problems, str(error)], None
    problems += shape_problems(cfg, model)
    # After the comparison with the files, whose layers it renames.
    try:
        add_adapter(model.language_model, cfg.model)
        if cfg.model.lora_ckpt:
            fitting_tensors(model.language_model, Path(cfg.model.lora_ckpt))
    except VideoLlamaError as error:
        problems.append(str(error))
    return problems, model


def annotation_problems(cfg: Config) -> Iterator[str]:
    """Yield annotations that are not what their data set expects."""
    for name, split, info in data_splits(cfg):
        if info is None or _annotation_bytes(info) > MAX_ANNOTATION_BYTES:
            continue
        try:
            if info.shards:
                expand_shards(info.shards)
            else:
                cfg.datasets[name].read(info)
        except ConfigError as error:
            yield f"datasets.{name} ({split}): {error}"


def _annotation_bytes(info: SplitInfo) -> int:
    path = Path(info.anno_dir or info.storage or "")
    files = [path] if path.is_file() else path.glob("*") if path.is_dir() else []
    return sum(file.stat().st_size for file in files if file.is_file())


def shape_problems(cfg: Config, model: VideoLlama) -> Iterator[str]:
    """Find weight files whose tensors do not fit, and parts without weights."""
    # As loading does it, one file after the other, but without keeping a tensor.
    filled: set[str | None] = set()
    for source in weight_sources(cfg.model):
        try:
            file = open_source(source)
            report = match(model, source, file)
            report.check(model.settings, model.language_model.config)
            values = ValueCheck(f"{source.key}: {source.path}")
            _add_values(values, file, {n[len(source.prefix) :]: n for n in report.loaded})
            values.finish()
        except VideoLlamaError as error:
            yield str(error)
            continue
        # A chat with a stage-1 file answers, but as if it only knew captions.
        filled |= report.groups
        if report.manifest and report.manifest.stage == 1 and cfg.model.trained_branch is None:
            yield (
                f"{source.key}: {source.path} was saved after stage 1 (captions), a chat expects a "
                "stage-2 file; train stage 2 from it, or give the finetuned file"
            )
    if has_weights(Path(cfg.model.llama_model)):
        filled.add("language_model")
        try:
            _check_llm(Path(cfg.model.llama_model), model)
        except VideoLlamaError as error:
            yield str(error)
    yield from missing_groups(cfg.model, filled)


def _add_values(values: ValueCheck, file: WeightFile, names: dict[str, str]) -> None:
    """Look at tensors of a file; `names` maps its names to the original's."""
    size = file.path.stat().st_size
    for key, name in names.items():
        if math.prod(file.shapes[key]) <= size:  # larger ones are not stored, which loading refuses
            values.add(name, file.tensor(key))


def _check_llm(folder: Path, model: VideoLlama) -> None:
    """Refuse shards of the LLM whose tensors are not those of its config.json."""
    key = "model.llama_model"
    wanted = {name: tuple(p.shape) for name, p in model.language_model.named_parameters()}
    values, found = ValueCheck(f"{key}: {folder}"), set()
    for shard in sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin")):
        try:
            file = open_weights(shard)
        except WeightsError as error:
            raise WeightsError(f"{key}: {error}") from error
        found |= {*file.shapes}
        for name, shape in file.shapes.items():
            if name in wanted and shape != wanted[name]:
                raise WeightsError(
                    f"{key}: {name} has shape {list(shape)} in {shard.name}, but "
                    f"config.json asks for {list(wanted[name])}; they belong to different models"
                )
        _add_values(values, file, {n: f"llama_model.{n}" for n in file.shapes if n in wanted})
    # A file that nothing names, not even an index, may be missing.
    missing = sorted(set(wanted) - found)
    if missing:
        raise WeightsError(
            f"{key}: {folder} lacks {len(missing)} tensors, first {missing[0]}; a "
            "shard is missing: download it again"
        )
    values.finish()


def memory_table(cfg: Config, model: VideoLlama) -> str:
    """Show parameters and memory of each part as configured, and of the LLM in other precisions."""
    parts = part_weights(model, quantization=cfg.model.quantization)
    everything = sum(part.parameters for part in parts.values())
    if cfg.model.trained_branch:
        trained = trained_parameters(model)
        training = PartWeights(trained, trained * (GRADIENT_BYTES + OPTIMISER_BYTES), "fp32")
        parts["gradients, AdamW"] = training
    # The LLM is most of it: what other precisions would save is the next question.
    total = PartWeights(everything, sum(part.bytes for part in parts.values()))
    sums = {"sum, without activations": total} | {
        f"  LLM in {precision}": PartWeights(0, llm_bytes(model, precision), precision)
        for precision in ("fp32", "bf16", "int8", "nf4")
    }
    sections = [[_memory_row(*row) for row in section.items()] for section in (parts, sums)]
    head = ["part", "precision", "parameters", "MB"]
    made = table("parameters and memory of the weights", head, *sections, words=2)
    return f"{rendered(made)}\n"


def _memory_row(name: str, part: PartWeights) -> list[str]:
    count = f"{part.parameters:,}" if part.parameters else ""
    return [name, part.precision, count, f"{part.bytes / 1e6:,.0f}"]
