"""What can be said about weight files and LLaMA folders at a glance. Torch-free."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from video_llama.types import ConfigError, WeightsError

LFS_MARK = b"version https://git-lfs"


def check_weight_file(path: Path) -> None:
    """Look at the first bytes of a weight file.

    Raises:
        WeightsError: missing, a folder, empty, a Git-LFS pointer or a web page.
    """
    if path.is_dir():
        raise WeightsError(
            f"{path} is a folder, a weight file is needed; it holds: {_listing(path)}"
        )
    if not path.is_file():
        raise WeightsError(f"{path} does not exist{_neighbours(path)}")
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


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor does its folder {path.parent})"
    return f"; {path.parent} holds: {_listing(path.parent)}"


def llama_values(folder: Path) -> dict[str, Any]:
    """What the `config.json` of a LLaMA folder says.

    Args:
        folder: `model.llama_model`.

    Raises:
        ConfigError: no folder, no config.json, not JSON, not a LLaMA, or impossible sizes.
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
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        kind = values.get("model_type", "llama")
    except (ValueError, AttributeError) as error:
        raise ConfigError(f"model.llama_model: {path} is not a JSON object: {error}") from error
    if kind != "llama":
        raise ConfigError(
            f"model.llama_model: {path} describes a {kind!r} model; Video-LLaMA needs a LLaMA "
            "(LLaMA-2-chat or Vicuna)"
        )
    _check_sizes(path, values)
    return values


def _check_sizes(path: Path, values: dict[str, Any]) -> None:
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
    for name in (*names, "vocab_size"):
        value = values.get(name, 1)
        if type(value) is not int or value < 1:
            raise ConfigError(
                f"model.llama_model: {path} has {name} {value!r}, a positive whole number expected"
            )
    width, heads = (values.get(name) for name in ("hidden_size", "num_attention_heads"))
    if width and heads and width % heads:
        raise ConfigError(
            f"model.llama_model: {path} has hidden_size {width}, a multiple of num_attention_heads "
            f"({heads}) expected"
        )
