"""Reading weight files of any kind lazily: names and shapes first, tensors one by one."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from video_llama.models.file_checks import check_weight_file
from video_llama.types import WeightsError


@dataclass(frozen=True)
class WeightFile:
    """A weight file that has been opened but not read.

    Attributes:
        path: the file.
        shapes: shape of every tensor, by name.
        metadata: text values stored beside the tensors (safetensors only).
        tensor: reads one tensor by name, memory-mapped where the format allows.
        extras: what else a training checkpoint holds (`config`, `epoch`, ...), tensors left out.
    """

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    metadata: Mapping[str, str]
    tensor: Callable[[str], Tensor]
    extras: Mapping[str, Any]


def open_weights(path: Path) -> WeightFile:
    """Open a .safetensors file, or a .pth/.pt/.bin pickle with nothing but tensors in it.

    A training checkpoint's `model` (or `state_dict`) entry is taken.

    Raises:
        WeightsError: missing, a folder, empty, a Git-LFS pointer, a web page, truncated, or holding
            objects that are not tensors.
    """
    check_weight_file(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    return _open_pickle(path)


def _open_safetensors(path: Path) -> WeightFile:
    try:
        file = safe_open(path, framework="pt")
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is not a complete safetensors file ({error}); download or save it again"
        ) from error
    shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    return WeightFile(path, shapes, file.metadata() or {}, file.get_tensor, {})


def _open_pickle(path: Path) -> WeightFile:
    loaded = load_pickle(path)
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, a state dict is needed")
    entries = (key for key in ("model", "state_dict") if isinstance(loaded.get(key), Mapping))
    entry = next(entries, None)
    tensors = dict(_tensors(loaded[entry] if entry else loaded))
    extras = {
        key: value
        for key, value in loaded.items()
        if entry and key != entry and not isinstance(value, Tensor)
    }
    if not tensors:
        names = ", ".join(map(str, loaded)) or "none"
        raise WeightsError(f"{path} holds no tensors; its entries are: {names}")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    return WeightFile(path, shapes, {}, tensors.__getitem__, extras)


def load_pickle(path: Path) -> Any:
    """`torch.load` without running code, memory-mapped where the file's format allows.

    Raises:
        WeightsError: truncated, not a torch file, or with Python objects in it.
    """
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[0]
        raise WeightsError(
            f"{path} is not a plain weight file ({reason}). Python objects are not loaded from it, "
            "because a pickle can run any code; save its tensors alone"
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise WeightsError(
            f"{path} cannot be read as a torch file ({reason}); it may be truncated: compare its "
            f"size ({path.stat().st_size:,} bytes) with the source's"
        ) from error


def _tensors(mapping: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in mapping.items():
        if isinstance(value, Tensor):
            yield str(name).removeprefix("module."), value
