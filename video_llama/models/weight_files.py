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

from video_llama.types import WeightsError

LFS_MARK = b"version https://git-lfs"


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
    _check_file(path)
    if path.suffix == ".safetensors":
        return _open_safetensors(path)
    return _open_pickle(path)


def _check_file(path: Path) -> None:
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
            f"{path} is a Git-LFS pointer, not the weights; run `git lfs pull` in its folder"
        )
    if head.lstrip()[:1] == b"<":
        raise WeightsError(f"{path} is a web page, not weights; the download needs a log-in")


def _listing(folder: Path) -> str:
    names = sorted(entry.name for entry in folder.iterdir())
    return ", ".join(names[:8]) + (", ..." if len(names) > 8 else "") or "nothing"


def _neighbours(path: Path) -> str:
    if not path.parent.is_dir():
        return f" (nor does its folder {path.parent})"
    return f"; {path.parent} holds: {_listing(path.parent)}"


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
