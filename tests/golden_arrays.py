"""Arrays to compare with, whole or as a sample of their values, and a small file of such samples.

The reference's arrays are megabytes; a few values spread over each one tell a wrong one from a
right one as well, and fit into the repository.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

MOST = 128
"""Floating-point values kept of one array; integers are kept whole."""
STRIDE = 7919
"""A prime, so that the places `i * STRIDE % size` differ and fall on every row and column."""


@dataclass(frozen=True)
class GoldenArray:
    """An array of which some values are known.

    Attributes:
        shape: of the whole array.
        values: flat; those at `places` of the flattened array.
    """

    shape: tuple[int, ...]
    values: npt.NDArray[Any]

    @property
    def places(self) -> npt.NDArray[np.int64]:
        size = math.prod(self.shape)
        if len(self.values) == size:
            return np.arange(size)
        return np.arange(len(self.values)) * STRIDE % size

    def sampled(self) -> GoldenArray:
        """The same array, with at most `MOST` of its values where it holds fractions."""
        size = math.prod(self.shape)
        if size <= MOST or self.values.dtype.kind != "f":
            return self
        places = np.arange(MOST) * STRIDE % size
        assert len(set(places)) == MOST, f"{STRIDE} divides {size}"
        return GoldenArray(self.shape, self.values[places])

    def whole(self) -> Tensor:
        """As a tensor; only where every value is known."""
        return torch.from_numpy(self.values.reshape(self.shape))

    def difference(self, computed: Tensor) -> float:
        """The largest difference from `computed`, which must have the same shape."""
        assert tuple(computed.shape) == self.shape, f"{tuple(computed.shape)}, not {self.shape}"
        flat = computed.detach().double().flatten().numpy()[self.places]
        return float(np.abs(flat - self.values.astype(np.float64)).max())

    @property
    def largest(self) -> float:
        """The largest known magnitude."""
        return float(np.abs(self.values).max())


_STORES = {"f4": np.float32, "f8": np.float64, "i4": np.int32}


def _store_of(array: npt.NDArray[Any]) -> str:
    return "i4" if array.dtype.kind in "iub" else f"f{array.dtype.itemsize}"


def write_samples(path: Path, header: dict[str, Any], arrays: Mapping[str, GoldenArray]) -> None:
    """Write samples of arrays into one compressed file, with a JSON header beside them."""
    stores: dict[str, list[npt.NDArray[Any]]] = {name: [] for name in _STORES}
    index = []
    for name, array in arrays.items():
        values = array.sampled().values
        store = _store_of(values)
        stores[store].append(values.astype(_STORES[store]))
        index.append([name, array.shape, store, len(values)])
    text = json.dumps({**header, "arrays": index}, separators=(",", ":"))
    np.savez_compressed(
        path,
        header=np.frombuffer(text.encode(), np.uint8),
        **{name: np.concatenate(parts) for name, parts in stores.items() if parts},
    )


def read_samples(path: Path) -> tuple[dict[str, Any], dict[str, GoldenArray]]:
    """What `write_samples` wrote: header and arrays by name."""
    with np.load(path) as file:
        header = json.loads(file["header"].tobytes())
        stores = {name: file[name] for name in file.files if name != "header"}
    arrays, starts = {}, dict.fromkeys(stores, 0)
    for name, shape, store, count in header.pop("arrays"):
        values = stores[store][starts[store] : starts[store] + count]
        starts[store] += count
        arrays[name] = GoldenArray(tuple(shape), values)
    return header, arrays
