"""Features of frozen encoders on the disk: each is computed once, by whoever needs it first.

A folder holds `key.json`, which says what computed the features, and shards: safetensors files that
are written whole, never changed, and read through memory maps. Any number of processes may read and
write one folder at a time; the worst that two of them do to each other is to compute an item twice.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from video_llama.common.io import atomic_write
from video_llama.types import ConfigError

KEY = "key.json"
SHARDS = "*.safetensors"
FEWEST_BYTES, MOST_BYTES = 1 << 20, 1 << 27
"""Sizes of a shard. The first ones are small, so that little is lost if a short run is killed."""
MOST_IN_VAIN = 32
"""Items that others may decode because their features are not on the disk yet."""
SECONDS = ".seconds"
"""Ends the name of the tensor with the times of a clip's frames."""


@dataclass(frozen=True, eq=False)
class Features:
    """What a frozen encoder makes of an item.

    Attributes:
        values: (T, Q, D) float16: Q vectors for each of T frames or segments.
        seconds: the times of a clip's frames.
    """

    values: Tensor
    seconds: Sequence[float] = ()


class FeatureCache:
    """The features in a folder.

    Args:
        folder: made if it does not exist.
        key: what the features are computed with: plain values.

    Raises:
        ConfigError: the folder holds features that were computed with something else.
    """

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        self.folder = folder
        _claim(folder, key)
        self._fresh: dict[str, Features] = {}
        self._fresh_bytes = self._written_bytes = self._in_vain = 0
        self._shards: list[Path] = []
        self._readers: list[Any] = []
        self._names = np.zeros(0, np.uint64)
        self._places = np.zeros(0, np.int64)
        self._stamp = 0
        self._read_new_shards()

    def __len__(self) -> int:
        """Items, counting those twice that two processes have computed."""
        return len(self._names) + len(self._fresh)

    def find(self, key: str) -> Features | None:
        """The features of an item, also if another process has written them meanwhile.

        Args:
            key: 32 hexadecimal digits.

        Raises:
            DiskFullError: there is no room for a shard.
        """
        fresh = self._fresh.get(key)
        if fresh is not None:
            # Whoever asks has met the item again, and looked for it on the disk before.
            self._in_vain += 1
            if self._in_vain >= MOST_IN_VAIN:
                self.flush()
            return fresh
        found = self._look_up(key)
        if found is None and self._read_new_shards():
            found = self._look_up(key)
        return found

    def put(self, key: str, features: Features) -> None:
        """Keep the features of an item; they are on the disk after the next `flush`.

        Raises:
            DiskFullError: there is no room for a shard.
        """
        self._fresh[key] = features
        self._fresh_bytes += features.values.nbytes
        if self._fresh_bytes >= min(max(FEWEST_BYTES, self._written_bytes // 8), MOST_BYTES):
            self.flush()

    def flush(self) -> None:
        """Write what is new to a shard of its own.

        Raises:
            DiskFullError: there is no room for it.
        """
        if not self._fresh:
            return
        tensors = {key: features.values for key, features in self._fresh.items()}
        for key, features in self._fresh.items():
            tensors[key + SECONDS] = torch.tensor(features.seconds, dtype=torch.float64)
        with atomic_write(self.folder / f"{uuid.uuid4().hex}.safetensors") as path:
            save_file(tensors, path)
        self._written_bytes += self._fresh_bytes
        self._fresh, self._fresh_bytes, self._in_vain = {}, 0, 0

    def _look_up(self, key: str) -> Features | None:
        name = _number(key)
        first, last = (np.searchsorted(self._names, name, side) for side in ("left", "right"))
        for place in self._places[first:last].tolist():
            reader = self._readers[place]
            try:
                values = reader.get_tensor(key)
            except SafetensorError:  # of another key with the same beginning
                continue
            return Features(values, reader.get_tensor(key + SECONDS).tolist())
        return None

    def _read_new_shards(self) -> bool:
        """Take notice of shards that have come since; whether there were any."""
        stamp = self.folder.stat().st_mtime_ns
        if stamp == self._stamp:
            return False
        self._stamp = stamp
        new = sorted(set(self.folder.glob(SHARDS)) - set(self._shards))
        for path in new:
            reader = _opened(path)
            keys = reader.keys()
            names = [_number(name) for name in keys if not name.endswith(SECONDS)]
            places = np.full(len(names), len(self._shards))
            self._names = np.concatenate([self._names, np.array(names, np.uint64)])
            self._places = np.concatenate([self._places, places])
            self._shards.append(path)
            self._readers.append(reader)
        order = np.argsort(self._names, kind="stable")
        self._names, self._places = self._names[order], self._places[order]
        return bool(new)


def _claim(folder: Path, key: dict[str, Any]) -> None:
    """Write what the features of a folder are computed with, or compare it."""
    path = folder / KEY
    if not path.exists():
        with atomic_write(path) as temporary:
            temporary.write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ConfigError(f"run.feature_cache: {path} is damaged; delete {folder}") from error
    given = json.loads(json.dumps(key))
    differing = sorted(name for name in {*found, *given} if found.get(name) != given.get(name))
    if differing:
        name = differing[0]
        raise ConfigError(
            f"run.feature_cache: the features in {folder} were computed with another "
            f"{', '.join(differing)} ({name}: {found.get(name)} there, {given.get(name)} now); "
            "give another folder, or delete this one"
        )


def _opened(path: Path) -> Any:
    """A shard, mapped into memory."""
    try:
        return safe_open(path, framework="pt").__enter__()
    except SafetensorError as error:
        raise ConfigError(
            f"run.feature_cache: {path} is damaged ({error}); delete it, and its items will be "
            "computed again"
        ) from error


def _number(key: str) -> int:
    """The first half of a key, by which an item is found."""
    return int(key[:16], 16)
