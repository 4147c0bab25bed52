"""Reading weight files of any kind lazily: names and shapes first, tensors one by one."""

from __future__ import annotations

import ctypes
import json
import math
import mmap
import pickle
import re
import struct
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from video_llama.models.weights.checks import check_weight_file
from video_llama.models.weights.names import original_name
from video_llama.types import WeightsError

_UNPICKLER_ERRORS = (
    *(pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError, TypeError, KeyError),
    *(IndexError, AttributeError, AssertionError, OverflowError, struct.error),
)
"""What torch's unpickler raises for bytes that are no torch file."""

_HEAD = 512
"""Bytes that hold the name of the first entry of a torch file: `NAME/data.pkl`."""
_TORCH_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SAFETENSORS_TYPES = ("F16", "BF16", "F32", "F64")

INDEX = ".safetensors.index.json"
"""How the name of an index of shards ends."""
_EXPORTED = tuple(
    f"video_llama.{part}."
    for part in (
        *("vision_encoder", "frame_qformer", "video_branch", "audio_encoder", "audio_branch"),
        "language_model",
    )
)
"""What the names of a model for transformers begin with."""

_MOST_OVERLAP = 16
"""How much larger than its file a tensor may be, for those that store one number many times."""


@dataclass(frozen=True)
class WeightFile:
    """A weight file that has been opened but not read."""

    path: Path
    shapes: Mapping[str, tuple[int, ...]]
    """Shape of every tensor, by name."""
    metadata: Mapping[str, str]
    """Text values stored beside the tensors (safetensors only)."""
    tensor: Callable[[str], Tensor]
    """Reads one tensor by name, memory-mapped where the format allows."""
    extras: Mapping[str, Any]
    """What else a training checkpoint holds (`config`, `epoch`, ...), tensors left out."""
    unfit: Mapping[str, str] = field(default_factory=dict)
    """Why a tensor cannot be a weight, by name; buffers of whole numbers are such."""


class MappedPages:
    """The places in memory where a file is mapped.

    A tensor that is converted or moved leaves its source behind: pages that have been read count
    as memory of this process until the file is closed. Giving them back is safe, because they come
    from the file again should they be read once more. Only Linux has such mappings.
    """

    def __init__(self, path: Path) -> None:
        # The lines of /proc/self/maps: range, permissions, offset, device, inode, path.
        self._ranges: list[tuple[int, int]] = []
        if sys.platform == "linux":
            wanted = str(path.resolve())
            for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
                fields = line.split(maxsplit=5)
                # A shared mapping that can be written must not be touched.
                writable = len(fields) == 6 and fields[1].endswith("s") and "w" in fields[1]
                if len(fields) == 6 and fields[5] == wanted and not writable:
                    start, _, end = fields[0].partition("-")
                    self._ranges.append((int(start, 16), int(end, 16)))

    def release(self, tensor: Tensor) -> None:
        """Give back the pages that lie wholly within a tensor, if they are those of the file."""
        # Pages at the edges hold other tensors too, and stay.
        start = tensor.data_ptr()
        end = start + tensor.numel() * tensor.element_size()
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = end // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0 and any(low <= start and end <= high for low, high in self._ranges):
            libc = ctypes.CDLL(None)
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def open_weights(path: Path) -> WeightFile:
    """Open a .safetensors file, or a .pth/.pt/.bin pickle with nothing but tensors in it.

    A training checkpoint's `model` (or `state_dict`) entry is taken.

    Raises:
        WeightsError: missing, a folder, empty, a Git-LFS pointer, a web page, truncated, or holding
            objects that are not tensors, or tensors that are not plain (sparse, quantised, ...).
    """
    check_weight_file(path)
    if path.name.endswith(INDEX):
        return _open_shards(path)
    # The content goes before the name, which tells only of files that are damaged.
    kind = format_of(path) or ("safetensors" if path.suffix == ".safetensors" else "torch")
    return _open_safetensors(path) if kind == "safetensors" else _open_pickle(path)


def format_of(path: Path) -> Literal["safetensors", "torch"] | None:
    """Tell the format of a weight file by its first bytes; None: no such file, or an old one."""
    try:
        if not path.is_file():  # a pipe would wait for ever
            return None
        with path.open("rb") as file:
            head = file.read(_HEAD)
    except OSError:
        return None
    # The length of a safetensors header, eight bytes, is below a gigabyte; JSON follows.
    if head[4:9] == b"\0\0\0\0{":
        return "safetensors"
    return "torch" if head[:2] == b"PK" and b"/data.pkl" in head else None


def _open_shards(index: Path) -> WeightFile:
    """Open the safetensors files that an index names as one."""
    try:
        names = set(json.loads(index.read_text("utf-8"))["weight_map"].values())
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise WeightsError(f"{index} is damaged; download it again") from error
    shards = [open_weights(index.parent / Path(name).name) for name in sorted(names)]
    of = {name: shard for shard in shards for name in shard.shapes}
    return WeightFile(
        index,
        {name: shard.shapes[name] for name, shard in of.items()},
        {},
        lambda name: of[name].tensor(name),
        {},
        {name: reason for shard in shards for name, reason in shard.unfit.items()},
    )


def _open_safetensors(path: Path) -> WeightFile:
    try:
        file = safe_open(path, framework="pt")
        slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path} is not a complete safetensors file ({error}); download or save it again"
        ) from error
    stored = _stored_names(slices)
    shapes = {name: tuple(slices[key].get_shape()) for name, key in stored.items()}
    types = {name: slices[key].get_dtype() for name, key in stored.items()}
    unfit = {n: _unfit(kind) for n, kind in types.items() if kind not in _SAFETENSORS_TYPES}

    def read(name: str) -> Tensor:
        tensor: Tensor = file.get_tensor(stored[name])
        return tensor

    return WeightFile(path, shapes, file.metadata() or {}, read, {}, unfit)


def _stored_names(keys: Iterable[str]) -> dict[str, str]:
    """Map names to those in the file: an exported one has ours, all others the original's."""
    keys = list(keys)
    exported = [key for key in keys if key.startswith(_EXPORTED)]
    if not exported:
        return {key: key for key in keys}
    return {original_name(key.removeprefix("video_llama.")): key for key in exported}


def _open_pickle(path: Path) -> WeightFile:
    # A training checkpoint keeps its weights under a key; anything else is a plain state dict.
    loaded = load_pickle(path)
    if not isinstance(loaded, Mapping):
        raise WeightsError(f"{path} holds a {type(loaded).__name__}, a state dict is needed")
    entries = (key for key in ("model", "state_dict") if isinstance(loaded.get(key), Mapping))
    entry = next(entries, None)
    tensors = dict(_tensors(path, loaded[entry] if entry else loaded))
    extras = {
        key: value
        for key, value in loaded.items()
        if entry and key != entry and not isinstance(value, Tensor)
    }
    if not tensors:
        names = ", ".join(map(str, loaded)) or "none"
        raise WeightsError(f"{path} holds no tensors; its entries are: {names}")
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    types = {name: tensor.dtype for name, tensor in tensors.items()}
    unfit = {n: _unfit(str(kind)) for n, kind in types.items() if kind not in _TORCH_TYPES}
    return WeightFile(path, shapes, {}, partial(_bounded, path, tensors), extras, unfit)


def load_pickle(path: Path) -> Any:
    """`torch.load` without running code, memory-mapped where the file's format allows."""
    # Old files cannot be mapped: they are read whole.
    try:
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap can only be used" not in str(error):
                raise
            return torch.load(path, map_location="cpu", weights_only=True)
    except _UNPICKLER_ERRORS as error:
        found = re.search(r"(?:GLOBAL|unsupported class) (\w[\w.]*)", str(error))
        if found:
            raise WeightsError(
                f"{path} is not a plain weight file (it holds {found[1]}). Python objects are not "
                "loaded from it, because a pickle can run any code; save its tensors alone"
            ) from error
        raise WeightsError(
            f"{path} cannot be read as a torch file ({_reason(error)}); it may be truncated: "
            f"compare its size ({path.stat().st_size:,} bytes) with the source's"
        ) from error


def _reason(error: Exception) -> str:
    """Return what torch says of a damaged file; its unpickler's messages help no reader."""
    lines = str(error).strip().splitlines()
    foreign = not lines or "weights_only" in str(error)
    if foreign or not isinstance(error, (EOFError, OSError, RuntimeError)):
        return "not a torch file"
    return lines[0]


def _tensors(path: Path, mapping: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    for name, value in mapping.items():
        if isinstance(value, Tensor):
            sparse = value.layout != torch.strided
            if value.is_nested or value.is_meta or value.is_quantized or sparse:
                raise WeightsError(
                    f"{path}: {name} is a sparse, quantised, nested or meta tensor; save it as a "
                    "plain one"
                )
            yield str(name).removeprefix("module."), value


def _unfit(kind: str) -> str:
    return f"is of type {kind}, one of float16, bfloat16, float32 and float64 expected"


def _bounded(path: Path, tensors: Mapping[str, Tensor], name: str) -> Tensor:
    """Return a tensor unless its copy would take far more memory than its file."""
    # An expanded tensor of one number is a few bytes in the file and may be terabytes as a copy.
    tensor = tensors[name]
    size, stored = math.prod(tensor.shape) * tensor.element_size(), path.stat().st_size
    if size > _MOST_OVERLAP * stored:
        raise WeightsError(
            f"{path}: {name} has shape {list(tensor.shape)}, {size:,} bytes, in a file of "
            f"{stored:,} bytes: its numbers are not stored; save a plain tensor"
        )
    return tensor
