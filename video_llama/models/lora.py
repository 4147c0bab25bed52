"""LoRA on the language model, through PEFT: what is learnt beside a branch, and how it is kept.

An adapter is kept as PEFT keeps it, under the names of a plain LLaMA, so that `PeftModel` loads it
without this package. PEFT is the optional extra `lora`: imported only where an adapter is wanted.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import video_llama.common.compat

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from video_llama.models.settings import ModelSettings
from video_llama.models.weights.save import ADAPTER_WEIGHTS, MERGED, save_tensors
from video_llama.types import ConfigError, WeightsError

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER = "adapter"
"""Folder of a checkpoint that holds the adapter."""
CONFIG = "adapter_config.json"
_PEFT, _OURS = "base_model.model.", "llama_model."
_NAME = "default"


def add_adapter(llm: LlamaForCausalLM, settings: ModelSettings, *, trains: bool) -> None:
    """Put the adapter of the settings beside the LLM's layers; without one, change nothing.

    Args:
        trains: whether its parameters have gradients. They are fp32, as all that trains.

    Raises:
        ConfigError: PEFT is not installed, or the adapter on disk is of another shape.
        WeightsError: its file does not fit.
    """
    saved = Path(settings.lora_ckpt) if settings.lora_ckpt else None
    if not settings.lora_r and saved is None:
        return
    peft = _peft()
    config = _config(settings) if saved is None else _read_config(saved, settings)
    peft.inject_adapter_in_model(config, llm, adapter_name=_NAME)
    for name, parameter in llm.named_parameters():
        is_lora = ".lora_" in name
        parameter.requires_grad_(is_lora and trains)
        if is_lora:
            parameter.data = parameter.data.float()
    if saved is not None and llm.device.type != "meta":
        _load(llm, read_adapter(saved), saved)


def lora_parameters(llm: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Yield the adapter's parameters under the names of `read_adapter`."""
    for name, parameter in llm.named_parameters():
        if ".lora_" in name:
            yield f"{_OURS}{name.replace(f'.{_NAME}.', '.')}", parameter


def save_adapter(llm: LlamaForCausalLM, settings: ModelSettings, folder: Path) -> str:
    """Write the adapter as PEFT does; return the hash that a branch names it by."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {_PEFT + name.removeprefix(_OURS): p for name, p in lora_parameters(llm)}
    save_tensors(tensors, folder / ADAPTER_WEIGHTS, {"format": "pt"})
    saved = Path(settings.lora_ckpt) if settings.lora_ckpt else None
    config = _config(settings) if saved is None else _read_config(saved, settings)
    values = {
        k: sorted(v) if isinstance(v, set) else v
        for k, v in config.to_dict().items()  # type: ignore[no-untyped-call]
    }
    # Paths of this machine mean nothing to who loads it, and no two runs would be equal.
    values |= {"base_model_name_or_path": None, "inference_mode": True}
    (folder / CONFIG).write_text(json.dumps(values, indent=1, sort_keys=True, default=str), "utf-8")
    return adapter_hash(folder)


def read_adapter(folder: Path) -> dict[str, Tensor]:
    """Read the tensors of an adapter's folder under the names of a branch; empty if there is none.

    Raises:
        WeightsError: the file is damaged.
    """
    path = folder / ADAPTER_WEIGHTS
    if not path.is_file():
        return {}
    try:
        tensors = load_file(path)
    except (SafetensorError, OSError) as error:
        raise WeightsError(f"{path} is not a complete adapter ({error}); save it again") from error
    return {_OURS + name.removeprefix(_PEFT): tensor for name, tensor in tensors.items()}


def adapter_hash(folder: str | Path | None) -> str:
    """Hash an adapter's tensors; empty if there is none."""
    path = Path(folder) / ADAPTER_WEIGHTS if folder else None
    if path is None or not path.is_file():
        return ""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def merge_adapter(llama: Path, adapter: Path, out: Path) -> None:
    """Write a plain LLaMA whose weights hold the adapter's changes.

    Raises:
        ConfigError: `out` exists, or PEFT is not installed.
        WeightsError: the adapter is of another LLaMA.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; give another folder, or remove it")
    peft = _peft()
    base = LlamaForCausalLM.from_pretrained(llama, dtype="auto", local_files_only=True)
    _read_config(adapter, None)
    try:
        merged = peft.PeftModel.from_pretrained(base, adapter).merge_and_unload()
    except (RuntimeError, ValueError, KeyError) as error:
        reason = " ".join(str(error).split())[:200]
        raise WeightsError(f"{adapter} does not fit {llama}: {reason}") from error
    # A branch that names the adapter finds it here, in a LLaMA that has it in its weights.
    setattr(merged.config, MERGED, adapter_hash(adapter))
    partial = out.with_name(f".{out.name}.partial")
    merged.save_pretrained(partial)
    # transformers would write a tokenizer that gives other ids: the original's is taken along.
    (partial / "tokenizer.model").write_bytes((llama / "tokenizer.model").read_bytes())
    partial.rename(out)


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            "model.lora_r: LoRA needs PEFT; pip install 'video-llama[lora]'"
        ) from error
    return peft


def _config(settings: ModelSettings) -> LoraConfig:
    config: LoraConfig = _peft().LoraConfig(
        r=settings.lora_r,
        lora_alpha=settings.lora_alpha,
        lora_dropout=settings.lora_dropout,
        target_modules=list(settings.lora_target_modules),
        task_type="CAUSAL_LM",
    )
    return config


def _read_config(folder: Path, settings: ModelSettings | None) -> LoraConfig:
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text("utf-8"))
        config: LoraConfig = _peft().LoraConfig(**values)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"model.lora_ckpt: {folder} is no adapter ({error}); give the folder with {CONFIG} and "
            f"{ADAPTER_WEIGHTS}, such as the one beside a branch"
        ) from error
    wanted = settings.lora_r if settings else 0
    if wanted and config.r != wanted:
        raise ConfigError(
            f"model.lora_r: {wanted} given, but the adapter {folder} has {config.r}; set it to "
            "that, or to 0 to use it as it is"
        )
    return config


def _load(llm: LlamaForCausalLM, tensors: dict[str, Tensor], folder: Path) -> None:
    named = dict(lora_parameters(llm))
    wrong = sorted(named.keys() ^ tensors.keys())
    wrong += [n for n in named.keys() & tensors.keys() if named[n].shape != tensors[n].shape]
    if wrong:
        raise WeightsError(
            f"model.lora_ckpt: {folder} does not fit the language model: {len(wrong)} tensors "
            f"differ in name or shape, first {wrong[0]}; it belongs to another one"
        )
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(tensors[name])
