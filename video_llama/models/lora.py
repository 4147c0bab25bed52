"""LoRA on the language model, through PEFT: what is learnt beside a branch, and how it is kept.

An adapter is kept as PEFT keeps it, under the names of a plain LLaMA, so that `PeftModel` loads it
without this package. PEFT is the optional extra `lora`: imported only where an adapter is wanted.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import video_llama.common.compat

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import LlamaForCausalLM

from video_llama.models.language_model import load_plain_llama
from video_llama.models.settings import LORA_TARGETS, ModelSettings
from video_llama.models.weights.save import ADAPTER_WEIGHTS, MERGED, save_tensors
from video_llama.types import ConfigError, WeightsError

if TYPE_CHECKING:
    from peft import LoraConfig

ADAPTER = "adapter"
"""Folder of a checkpoint that holds the adapter."""
CONFIG = "adapter_config.json"
_PEFT, _OURS = "base_model.model.", "llama_model."
_NAME = "default"
_EXTRAS = (
    *("use_dora", "modules_to_save", "trainable_token_indices", "target_parameters", "lora_bias"),
    *("layer_replication", "alora_invocation_tokens", "use_qalora", "megatron_config"),
)
"""Options of PEFT that change more than products of layers."""


def add_adapter(llm: LlamaForCausalLM, settings: ModelSettings) -> None:
    """Put the adapter of the settings beside the LLM's layers; without one, change nothing.

    Its parameters are fp32, as all that trains.

    Raises:
        ConfigError: PEFT is not installed, the LLM holds an adapter already, or the one on disk is
            of another kind or shape.
        WeightsError: its file does not fit.
    """
    saved = Path(settings.lora_ckpt) if settings.lora_ckpt else None
    if not settings.lora_r and saved is None:
        return
    if getattr(llm.config, MERGED, ""):
        # With its own adapter beside it the changes would count twice.
        raise ConfigError(
            f"model.llama_model: {settings.llama_model} has an adapter merged into it; leave "
            "model.lora_r and model.lora_ckpt away, or give the plain LLaMA"
        )
    peft = _peft()
    config = _config(settings) if saved is None else _read_config(saved, settings)
    peft.inject_adapter_in_model(config, llm, adapter_name=_NAME)
    for name, parameter in llm.named_parameters():
        is_lora = ".lora_" in name
        parameter.requires_grad_(is_lora and settings.trains_adapter)
        if is_lora:
            parameter.data = parameter.data.float()
    for layer in llm.model.layers:
        # The layers are in training mode for the adapter's dropout; attention has none of its own.
        layer.self_attn.attention_dropout = 0.0
    if saved is not None and llm.device.type != "meta":
        tensors = fitting_tensors(llm, saved)
        for name, parameter in lora_parameters(llm):
            parameter.data.copy_(tensors[name])


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
        ConfigError: `out` exists, PEFT is not installed, or the LLaMA is quantised or merged.
        WeightsError: the LLaMA is incomplete, or the adapter is, or of another LLaMA.
    """
    if out.exists():
        raise ConfigError(f"{out} exists; give another folder, or remove it")
    # Both are read as for an answer, so that nothing which is incomplete gets into the sum.
    model = load_plain_llama(llama)
    add_adapter(model, ModelSettings(llama_model=str(llama), lora_ckpt=str(adapter)))
    for name, layer in list(model.named_modules()):
        if hasattr(layer, "lora_A"):
            adapted: Any = layer
            adapted.merge(safe_merge=True)
            model.set_submodule(name, adapted.get_base_layer())
    del model.peft_config
    # A branch that names the adapter finds it here, in a LLaMA that has it in its weights.
    setattr(model.config, MERGED, adapter_hash(adapter))
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        model.save_pretrained(partial)
        # transformers would write a tokenizer that gives other ids: the original's is taken along.
        shutil.copyfile(llama / "tokenizer.model", partial / "tokenizer.model")
        partial.rename(out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


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


def _read_config(folder: Path, settings: ModelSettings) -> LoraConfig:
    path = folder / CONFIG
    try:
        values = json.loads(path.read_text("utf-8"))
        config: LoraConfig = _peft().LoraConfig(**values)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(
            f"model.lora_ckpt: {folder} is no adapter ({error}); give the folder with {CONFIG} and "
            f"{ADAPTER_WEIGHTS}, such as the one beside a branch"
        ) from error
    _check_plain(values, folder)
    if settings.lora_r:
        shapes = (
            ("lora_r", settings.lora_r, config.r),
            ("lora_alpha", settings.lora_alpha, config.lora_alpha),
            (
                "lora_target_modules",
                sorted(settings.lora_target_modules),
                sorted(config.target_modules or ()),
            ),
        )
        for key, ours, theirs in shapes:
            if ours != theirs:
                raise ConfigError(
                    f"model.{key}: {ours} given, but the adapter {folder} has {theirs}; set it to "
                    "that, or model.lora_r to 0 to use it as it is"
                )
        config.lora_dropout = settings.lora_dropout
    return config


def _check_plain(values: dict[str, Any], folder: Path) -> None:
    """Refuse adapters that do more than LoRA beside the layers of a decoder."""
    extra = [key for key in _EXTRAS if values.get(key)]
    if values.get("bias", "none") != "none":
        extra.append("bias")
    if values.get("peft_type", "LORA") != "LORA" or extra:
        kind = f"{values.get('peft_type')} {', '.join(extra)}".strip()
        raise ConfigError(f"model.lora_ckpt: {folder} is of the kind {kind}, plain LoRA expected")
    # The loss reads lm_head's weight directly, past an adapter.
    targets = values.get("target_modules")
    if not isinstance(targets, list) or not {*targets} <= {*LORA_TARGETS}:
        raise ConfigError(
            f"model.lora_ckpt: {folder} changes {targets!r}, some of {', '.join(LORA_TARGETS)} "
            "expected"
        )


def fitting_tensors(llm: LlamaForCausalLM, folder: Path) -> dict[str, Tensor]:
    """Read the tensors of a folder whose like has been put beside the LLM's layers.

    Raises:
        WeightsError: they do not fit, or are not finite.
    """
    tensors, named = read_adapter(folder), dict(lora_parameters(llm))
    if not tensors:
        raise WeightsError(f"model.lora_ckpt: {folder} has no {ADAPTER_WEIGHTS}; save it again")
    wrong = sorted(named.keys() ^ tensors.keys())
    wrong += [n for n in named.keys() & tensors.keys() if named[n].shape != tensors[n].shape]
    if wrong:
        raise WeightsError(
            f"model.lora_ckpt: {folder} does not fit the language model: {len(wrong)} tensors "
            f"differ in name or shape, first {wrong[0]}; it belongs to another one"
        )
    for name, tensor in tensors.items():
        if not bool(torch.isfinite(tensor).all()):
            raise WeightsError(
                f"model.lora_ckpt: {folder}: {name} holds values that are not finite; its training "
                "has diverged: take an earlier checkpoint"
            )
    return tensors
