"""Quick checks of weight files and LLaMA folders: first bytes and config.json. Torch-free."""

from __future__ import annotations

import json
import stat
from pathlib import Path
from typing import Any

from video_llama.types import ConfigError, WeightsError

EXPORTED = "video_llama"
"""The `model_type` of a folder that was written for transformers."""
LFS_MARK = b"version https://git-lfs"

_SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
RELEASED_SIZES: dict[str, dict[str, Any]] = {
    "7b": dict(zip(_SIZES, (4096, 11008, 32, 32), strict=True)),
    "13b": dict(zip(_SIZES, (5120, 13824, 40, 40), strict=True)),
}
"""LLaMA's sizes, for shapes without files."""


def check_weight_file(path: Path) -> None:
    """Refuse a weight file by its kind and first bytes.

    Raises:
        WeightsError: missing, a folder, a device, a loop of links, empty, a Git-LFS pointer or a
            web page.
    """
    if path.is_dir():
        raise WeightsError(
            f"{path} is a folder, a weight file is needed; it holds: {_listing(path)}"
        )
    # The kind comes before the content: opening a pipe would wait for ever.
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        folder = path.parent
        near = f"; {folder} holds: {_listing(folder)}" if folder.is_dir() else ""
        near = near or f" (nor does its folder {folder})"
        raise WeightsError(f"{path} does not exist{near}") from error
    except OSError as error:  # a loop of links among others
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    if not stat.S_ISREG(mode):
        raise WeightsError(f"{path} is a device or a pipe, a weight file is needed")
    # What failed downloads leave behind: nothing, a pointer, or the page of a log-in.
    try:
        with path.open("rb") as file:
            head = file.read(len(LFS_MARK))
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror}") from error
    if not head:
        raise WeightsError(f"{path} is empty; download it again")
    if head == LFS_MARK:
        raise WeightsError(
            f"{path} is a Git-LFS pointer, not the file itself; run `git lfs pull` in its folder"
        )
    if head.lstrip()[:1] == b"<":
        raise WeightsError(
            f"{path} is a web page, not the file itself; the download needs a log-in"
        )


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "nothing"


def llama_values(folder: Path) -> dict[str, Any]:
    """Read the `config.json` of a LLaMA folder.

    Raises:
        ConfigError: no folder, no config.json, not JSON, not a LLaMA, quantised, or impossible
            sizes.
    """
    path = folder / "config.json"
    if folder.is_file():
        raise ConfigError(
            f"model.llama_model: {folder} is a file; give the folder that holds config.json, "
            "tokenizer.model and the weights"
        )
    if not path.is_file():
        raise ConfigError(
            f"model.llama_model: no {path}; give the folder of a LLaMA in Hugging Face form "
            "(config.json, tokenizer.model, *.safetensors or *.bin)"
        )
    # Old folders lack model_type; a model of another family would load with random values.
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = values.get("model_type", "llama")
    except (ValueError, AttributeError, RecursionError) as error:
        raise ConfigError(f"model.llama_model: {path} is not a JSON object: {error}") from error
    if kind == EXPORTED and isinstance(values.get("text_config"), dict):
        values = values["text_config"]
    elif kind != "llama":
        raise ConfigError(
            f"model.llama_model: {path} describes a {kind!r} model; Video-LLaMA needs a LLaMA "
            "(LLaMA-2-chat or Vicuna)"
        )
    _check_plain(folder, values)
    _check_sizes(path, values)
    return values


def _check_plain(folder: Path, values: dict[str, Any]) -> None:
    """Refuse weights that were quantised before they were saved, other than by bitsandbytes.

    The packages that read the others are not installed, and few of them pass gradients, which the
    training of a branch needs.
    """
    path, method = folder / "config.json", None
    quantization = values.get("quantization_config")
    if quantization:
        named = quantization.get("quant_method") if isinstance(quantization, dict) else None
        method = str(named or "an unknown method")
    for name, older in _QUANTIZER_FILES.items():  # of AutoGPTQ and AutoAWQ before they changed it
        if method is None and (folder / name).is_file():
            path, method = folder / name, older
    if method not in (None, "bitsandbytes"):
        raise ConfigError(
            f"model.llama_model: {path} says that the weights are quantised ({method}), plain ones "
            "are needed: give the folder of the same model in float16 or bfloat16, and set "
            "model.quantization=int8 or nf4 for less memory"
        )


_RANGES = {
    "hidden_size": (1, 10**6),
    "intermediate_size": (1, 10**7),
    "num_hidden_layers": (1, 1024),
    "num_attention_heads": (1, 10**4),
    "num_key_value_heads": (1, 10**4),
    "head_dim": (2, 10**4),
    "vocab_size": (3, 10**7),
    "max_position_embeddings": (16, 10**8),
}
"""Smallest and largest value of the sizes of a LLaMA."""

_MAY_BE_NULL = ("num_key_value_heads", "head_dim")
_QUANTIZER_FILES = {"quantize_config.json": "gptq", "quant_config.json": "awq"}


def _check_sizes(path: Path, values: dict[str, Any]) -> None:
    for name, (least, most) in _RANGES.items():
        value = values.get(name, least)
        if value is None and name in _MAY_BE_NULL:
            continue
        if type(value) is not int or not least <= value <= most:
            raise ConfigError(
                f"model.llama_model: {path} has {name} {value!r}, a whole number from {least} to "
                f"{most:,} expected"
            )
    # Heads divide the width, and groups of keys the heads.
    heads = "num_attention_heads"
    for name, divisor in (("hidden_size", heads), (heads, "num_key_value_heads")):
        whole, part = values.get(name), values.get(divisor)
        if whole and part and whole % part:
            raise ConfigError(
                f"model.llama_model: {path} has {name} {whole}, a multiple of {divisor} "
                f"({part}) expected"
            )


def exported_weights(folder: Path) -> Path | None:
    """Return the weights of a folder that was written for transformers; None: it is none."""
    try:
        kind = json.loads((folder / "config.json").read_text(encoding="utf-8"))["model_type"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None
    if kind != EXPORTED:
        return None
    index = folder / "model.safetensors.index.json"
    return index if index.is_file() else folder / "model.safetensors"
