"""What is wrong with the paths and files of a configuration, told without torch in a moment.

The part of `doctor` that looks into files: annotations, shapes, and memory.
"""

from __future__ import annotations

import importlib.util
import io
import json
import os
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.table import Table
from torch import nn

from video_llama.config.build import resolve_device
from video_llama.config.load import Config
from video_llama.datasets.base import SplitInfo
from video_llama.datasets.shards import expand_shards
from video_llama.models.build import build_video_llama, missing_groups, weight_sources
from video_llama.models.language_model import has_weights
from video_llama.models.video_llama import VideoLlama
from video_llama.models.weights.checks import check_weight_file, llama_values
from video_llama.models.weights.files import open_weights
from video_llama.models.weights.load import match, open_source
from video_llama.text.questions import caption_prompts
from video_llama.text.tokenizer import load_tokenizer
from video_llama.types import ConfigError, VideoLlamaError, WeightsError


def path_problems(cfg: Config) -> Iterator[str]:
    """Files and folders that are missing or of the wrong kind, and a template that cannot fit."""
    yield from _llm_problems(cfg)
    yield from _weight_problems(cfg)
    yield from _prompt_problems(cfg)
    if cfg.model.quantization != "none" and importlib.util.find_spec("bitsandbytes") is None:
        yield (
            f"model.quantization: {cfg.model.quantization} needs bitsandbytes; "
            "pip install 'video-llama[quant]'"
        )
    for name, split, info in data_splits(cfg):
        yield from _data_problems(f"datasets.{name}.build_info", split, info)
    if cfg.model.trained_branch or cfg.run.evaluate:
        yield from _output_problems(cfg)


def check_paths(cfg: Config) -> None:
    """Refuse a configuration whose files are not there, before torch is imported.

    Raises:
        ConfigError: the first problem, and how many more `doctor` would list.
    """
    problems = list(path_problems(cfg))
    if problems:
        more = len(problems) - 1
        rest = f" ({more} more: `video-llama doctor` lists them)" if more else ""
        raise ConfigError(f"{problems[0]}{rest}")


def data_splits(cfg: Config) -> Iterator[tuple[str, str, SplitInfo | None]]:
    """Data set, split and its place, for every split that a run reads; a chat reads none."""
    run = cfg.run
    splits: list[str] = []
    if cfg.model.trained_branch and not run.evaluate:
        splits += run.train_splits
    if cfg.model.trained_branch or run.evaluate:
        splits += [*run.valid_splits, *run.test_splits]
    for name, entry in cfg.datasets.items():
        for split in splits:
            yield name, split, entry.build_info.split(split)


def _llm_problems(cfg: Config) -> Iterator[str]:
    folder = Path(cfg.model.llama_model)
    if not folder.exists():
        yield (
            f"model.llama_model: {_absent(folder)}; download LLaMA-2-7b-chat-hf or Vicuna into it, "
            "or correct the path"
        )
        return
    try:
        values = llama_values(folder)
    except ConfigError as error:
        yield str(error)
        return
    tokenizer = folder / "tokenizer.model"
    if not tokenizer.is_file():
        yield f"model.llama_model: {folder} has no tokenizer.model; the download is incomplete"
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    if not weights and not cfg.model.random_init and not cfg.model.ckpt:
        yield (
            f"model.llama_model: {folder} has no *.safetensors or *.bin; download the weights, or "
            "set model.random_init=true for a model that speaks nonsense"
        )
    for path in (tokenizer, *weights):
        if path.is_file():
            yield from _content_problems("model.llama_model", path)
    yield from _shard_problems(folder)
    names = f"{folder.name} {values.get('_name_or_path', '')}"
    yield from _template_problems(folder, names, cfg.model.template)


def _shard_problems(folder: Path) -> Iterator[str]:
    """Files that an index of the LLM names and that are not there."""
    for index in folder.glob("*.index.json"):
        try:
            files = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, TypeError, AttributeError):
            yield f"model.llama_model: {index} is damaged; download it again"
            continue
        missing = sorted(name for name in files if not (folder / name).is_file())
        whole = [*folder.glob("*.safetensors")] and index.name.startswith("pytorch_model")
        if missing and not whole:  # a folder may hold one of two formats, with both indices
            yield (
                f"model.llama_model: {folder} lacks {len(missing)} of the {len(files)} files that "
                f"{index.name} names, first {missing[0]}; download it"
            )


def _template_problems(folder: Path, names: str, template: str) -> Iterator[str]:
    """A template of another family than the names that the folder goes by."""
    text = names.lower().replace("_", "-")
    family = template
    if "vicuna" in text:
        family = "vicuna"
    elif "llama-2" in text or "llama2" in text:
        family = "llama_v2"
    if family != template:
        yield (
            f"model.template: {template} given, but {folder} is a {family} model, which was "
            f"trained with another format; set model.model_type=pretrain_{family}, or give a "
            f"{template} model in model.llama_model"
        )


def _weight_problems(cfg: Config) -> Iterator[str]:
    model = cfg.model
    files = {
        "vit_ckpt": model.vit_ckpt,
        "q_former_model": model.q_former_model,
        "llama_proj_model": model.llama_proj_model,
        "imagebind_ckpt_path": model.imagebind_file if model.equip_audio_branch else None,
        "ckpt": model.ckpt,
        "ckpt_2": model.ckpt_2,
    }
    for key, value in files.items():
        if not value:
            continue
        path = Path(value)
        if path.is_dir():
            held = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
            yield f"model.{key}: {path} is a folder, give the file; the folder holds {held}"
        elif not (path.exists() or path.is_symlink()):
            yield (
                f"model.{key}: {_absent(value)}; the README's table of weights says where to get "
                "it, or correct the path"
            )
        else:
            yield from _content_problems(f"model.{key}", path)


def _content_problems(key: str, path: Path) -> Iterator[str]:
    try:
        check_weight_file(path)
    except WeightsError as error:
        yield f"{key}: {error}"


def _prompt_problems(cfg: Config) -> Iterator[str]:
    if not cfg.model.prompt_path or cfg.model.trained_branch is None:
        return
    path = Path(cfg.model.prompt_path)
    if not path.is_file():
        yield (
            f"model.prompt_path: {path} is no file; the shipped one is prompts/alignment_image.txt"
        )
        return
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        caption_prompts(lines, cfg.model.prompt_template)
    except UnicodeDecodeError:
        yield f"model.prompt_path: {path} is no text in UTF-8; give one prompt per line"
    except ConfigError as error:
        yield f"{error} ({path})"


def _data_problems(key: str, split: str, info: SplitInfo | None) -> Iterator[str]:
    if info is None:
        if split == "train":
            yield f"{key}: neither anno_dir nor storage is given; say where the data lies"
        return
    where = key if split == "train" else f"{key}.{split}"
    if info.shards:
        # What the pattern stands for is found out when the data is opened.
        folder = Path(info.shards.split("{")[0].split("*")[0] + "x").parent
        if not folder.is_dir():
            yield f"{where}.storage: there is no folder {folder}; correct the path of the tars"
        return
    if info.anno_dir and not Path(info.anno_dir).exists():
        yield f"{where}.anno_dir: {_absent(info.anno_dir)}; give the annotations"
    for name in ("videos_dir", "storage"):
        value = getattr(info, name)
        if value and not Path(value).exists():
            yield f"{where}.{name}: {_absent(value)}; give the folder of the data"
        elif value and not Path(value).is_dir():
            yield f"{where}.{name}: {value} is a file; give the folder of the data"


def _absent(path: str | Path) -> str:
    start = "" if Path(path).is_absolute() else f" in {Path.cwd()}"
    return f"{path} does not exist{start}"


def _output_problems(cfg: Config) -> Iterator[str]:
    wanted = Path(cfg.run.output_dir).absolute()
    folder = next(path for path in (wanted, *wanted.parents) if path.exists())
    if not folder.is_dir():
        yield f"run.output_dir: {wanted} cannot be made, because {folder} is a file; choose another"
    elif not os.access(folder, os.W_OK | os.X_OK):
        yield f"run.output_dir: no permission to write in {folder}; choose another folder"
    resume = cfg.run.resume_ckpt_path
    if resume and resume != "latest" and not Path(resume).exists():
        yield (
            f"run.resume_ckpt_path: {_absent(resume)}; give latest, the folder of a run or a "
            "checkpoint in it"
        )


BYTES_PER_WEIGHT = {"none": None, "int8": 1.0, "nf4": 0.55}
"""Bytes of a quantised weight with its scales; None: those of its precision."""
TRAINING_BYTES = 4 + 8
"""Gradient and AdamW's two moments of a trained weight, in bytes."""


MAX_ANNOTATION_BYTES = 50_000_000
"""Annotations larger than this are not read: that is for `video-llama data check`."""


def examine(cfg: Config) -> tuple[list[str], VideoLlama | None]:
    """What only torch and the data sets' readers can see.

    Args:
        cfg: a configuration whose paths are all there.

    Returns:
        The problems, and the model in shapes; None if not even that can be made.
    """
    problems = []
    try:
        resolve_device(cfg.run.device)
    except VideoLlamaError as error:
        problems.append(str(error))
    problems += annotation_problems(cfg)
    try:
        load_tokenizer(cfg.model.llama_model)
    except VideoLlamaError as error:
        return [*problems, f"model.llama_model: {error}"], None
    try:
        model = build_video_llama(cfg.model, device="meta", seed=0)
    except VideoLlamaError as error:
        return [*problems, str(error)], None
    return [*problems, *shape_problems(cfg, model)], model


def annotation_problems(cfg: Config) -> Iterator[str]:
    """Annotations that are not what their data set expects."""
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
    """Weight files whose tensors do not fit, and parts without weights."""
    filled: set[str | None] = set()
    for source in weight_sources(cfg.model):
        try:
            report = match(model, source, open_source(source))
            report.check(model)
        except VideoLlamaError as error:
            yield str(error)
            continue
        filled |= report.groups
        if report.manifest and report.manifest.stage == 1 and cfg.model.trained_branch is None:
            yield (
                f"{source.key}: {source.path} was saved after stage 1 (captions), a chat expects a "
                "stage-2 file; train stage 2 from it, or give the finetuned file"
            )
    if has_weights(Path(cfg.model.llama_model)):
        yield from _llm_shapes(cfg, model)
        filled.add("language_model")
    yield from missing_groups(cfg.model, filled)


def _llm_shapes(cfg: Config, model: VideoLlama) -> Iterator[str]:
    """Tensors of the LLM's shards whose shapes are not those of its config.json."""
    folder = Path(cfg.model.llama_model)
    wanted = {name: tuple(p.shape) for name, p in model.language_model.named_parameters()}
    shards = sorted(folder.glob("*.safetensors")) or sorted(folder.glob("pytorch_model*.bin"))
    found: set[str] = set()
    for shard in shards:
        try:
            shapes = open_weights(shard).shapes
        except VideoLlamaError as error:
            yield f"model.llama_model: {error}"
            return
        found |= set(shapes)
        for name, shape in shapes.items():
            if name in wanted and shape != wanted[name]:
                yield (
                    f"model.llama_model: {name} has shape {list(shape)} in {shard.name}, but "
                    f"config.json asks for {list(wanted[name])}; they belong to different models"
                )
                return
    missing = sorted(set(wanted) - found)
    if missing:
        yield (
            f"model.llama_model: {folder} lacks {len(missing)} tensors, first {missing[0]}; a "
            "shard is missing: download it again"
        )


def memory_table(cfg: Config, model: VideoLlama) -> str:
    """Parameters and memory of each part as configured, and of the LLM in other precisions."""
    table = Table(title="parameters and memory of the weights")
    for column, right in (
        ("part", False),
        ("parameters", True),
        ("precision", False),
        ("MB", True),
    ):
        table.add_column(column, justify="right" if right else "left")
    total = 0.0
    for name, part in model.named_children():
        size = _megabytes(part, cfg.model.quantization if name == "language_model" else "none")
        total += size
        table.add_row(name, f"{_count(part):,}", _precision(cfg, name, part), f"{size:,.0f}")
    trained = sum(parameter.numel() for _, parameter in model.trainable_parameters())
    if cfg.model.trained_branch:
        training = trained * TRAINING_BYTES / 1e6
        total += training
        table.add_row("gradients, AdamW", f"{trained:,}", "fp32", f"{training:,.0f}")
    table.add_section()
    table.add_row("sum, without activations", f"{_count(model):,}", "", f"{total:,.0f}")
    for name, size in _alternatives(model):
        table.add_row(f"  LLM in {name}", "", name, f"{size:,.0f}")
    console = Console(file=io.StringIO(), width=80)
    console.print(table)
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue()


def _count(part: nn.Module) -> int:
    return sum(parameter.numel() for parameter in part.parameters())


def _megabytes(part: nn.Module, quantization: str) -> float:
    per_weight = BYTES_PER_WEIGHT[quantization]
    return sum(
        p.numel() * (per_weight if per_weight and p.ndim == 2 else p.element_size()) / 1e6
        for p in part.parameters()
    )


def _precision(cfg: Config, name: str, part: nn.Module) -> str:
    if name == "language_model" and cfg.model.quantization != "none":
        return cfg.model.quantization
    largest = max(part.parameters(), key=lambda parameter: parameter.numel())
    return str(largest.dtype).removeprefix("torch.")


def _alternatives(model: VideoLlama) -> Iterator[tuple[str, float]]:
    count = _count(model.language_model)
    yield "float32", count * 4 / 1e6
    yield "bfloat16", count * 2 / 1e6
    yield "int8", _megabytes(model.language_model, "int8")
    yield "nf4", _megabytes(model.language_model, "nf4")
