"""Check the paths and files of a configuration without torch, in a moment."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Iterator
from pathlib import Path

from video_llama.config.schema import Config
from video_llama.datasets.base import SplitInfo
from video_llama.models.weights.checks import check_weight_file, llama_values
from video_llama.text.questions import caption_prompts
from video_llama.types import ConfigError, WeightsError


def path_problems(cfg: Config) -> Iterator[str]:
    """Yield what is missing or of the wrong kind, and a template that does not fit the LLM."""
    yield from _llm_problems(cfg)
    yield from _weight_problems(cfg)
    yield from _prompt_problems(cfg)
    if cfg.model.quantization != "none" and importlib.util.find_spec("bitsandbytes") is None:
        yield (
            f"model.quantization: {cfg.model.quantization} needs bitsandbytes; "
            "pip install 'video-llama[quant]'"
        )
    yield from _adapter_problems(cfg)
    for name, split, info in data_splits(cfg):
        yield from _data_problems(f"datasets.{name}.build_info", split, info)
    if cfg.model.trained_branch or cfg.run.evaluate:
        yield from _output_problems(cfg)


def _adapter_problems(cfg: Config) -> Iterator[str]:
    model = cfg.model
    if (model.lora_r or model.lora_ckpt) and importlib.util.find_spec("peft") is None:
        yield "model.lora_r: LoRA needs PEFT; pip install 'video-llama[lora]'"
    if model.lora_ckpt and not (Path(model.lora_ckpt) / "adapter_config.json").is_file():
        yield (
            f"model.lora_ckpt: no adapter_config.json in {model.lora_ckpt}; give the folder "
            "`adapter` beside the branch, or correct the path"
        )


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
    """Yield data set, split and its place for every split that a run reads; a chat reads none."""
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
    # Without a config.json nothing else of the folder can be judged.
    try:
        values = llama_values(folder)
    except ConfigError as error:
        yield str(error)
        return
    tokenizer = folder / "tokenizer.model"
    if not tokenizer.is_file():
        yield f"model.llama_model: {folder} has no tokenizer.model; the download is incomplete"
    # A whole-model checkpoint may bring the LLM's weights instead of its folder.
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
    """Yield files that an index of the LLM names and that are not there."""
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
    """Yield a template of another family than the names that the folder goes by."""
    # A wrong format does not fail: the model just answers worse.
    families = {"vicuna": "vicuna", "llama-2": "llama_v2", "llama2": "llama_v2"}
    text = names.lower().replace("_", "-")
    family = next((family for name, family in families.items() if name in text), template)
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
        # A link that leads nowhere, or in a circle, gets its own message below.
        elif not (path.exists() or path.is_symlink()):
            yield (
                f"model.{key}: {_absent(value)}; README.md and docs/weights.md say where "
                "to get it, or correct the path"
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
    try:
        caption_prompts(path.read_text("utf-8").splitlines(), cfg.model.prompt_template)
    except OSError:
        shipped = "prompts/alignment_image.txt"
        yield f"model.prompt_path: {path} is no file; the shipped one is {shipped}"
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
    for name in ("anno_dir", "videos_dir", "storage"):
        value = getattr(info, name)
        what = "annotations" if name == "anno_dir" else "folder of the data"
        if value and not Path(value).exists():
            yield f"{where}.{name}: {_absent(value)}; give the {what}"
        elif value and name != "anno_dir" and not Path(value).is_dir():
            yield f"{where}.{name}: {value} is a file; give the {what}"


def _absent(path: str | Path) -> str:
    start = "" if Path(path).is_absolute() else f" in {Path.cwd()}"
    return f"{path} does not exist{start}"


def _output_problems(cfg: Config) -> Iterator[str]:
    # The nearest folder that exists is the one in which the others would be made.
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
