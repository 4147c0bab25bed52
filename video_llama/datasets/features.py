"""Features of frozen encoders on the disk: each is computed once, by whoever needs it first.

A folder holds `key.json`, which says what computed the features, and shards: safetensors files that
are written whole and never changed. Any number of processes may read and write one folder at a
time. The worst that two of them do to each other is to compute an item twice.

Shards are read with `read`, not through memory maps: a mapped file that is cut short kills the
process that looks at it. Every item has a checksum over its key, shape, times and values. An item
whose bytes have changed is computed again, with one warning per shard.
"""

from __future__ import annotations

import json
import logging
import uuid
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor

from video_llama.common.io import atomic_write
from video_llama.datasets.tables import is_read_only
from video_llama.types import ConfigError

KEY = "key.json"
SHARDS = "*.safetensors"
FEWEST_BYTES, MOST_BYTES = 1 << 20, 1 << 27
"""Sizes of a shard. The first ones are small, so that little is lost if a short run is killed."""
MOST_IN_VAIN = 32
"""Items that others may decode because their features are not on the disk yet."""
SECONDS = ".seconds"
"""Ends the name of the tensor with the times of a clip's frames."""
CHECKSUMS = "checksums"
"""Name of the tensor with the checksums of a shard's items, in the order of their keys."""

ENTRY = np.dtype(
    {
        "names": ["rest", "shard", "offset", "shape", "seconds_offset", "seconds", "check"],
        "formats": ["u8", "u4", "u8", ("u4", 3), "u8", "u4", "u4"],
    }
)
"""Where an item lies: the second half of its key, offsets and counts. 48 bytes for each."""

logger = logging.getLogger(__name__)


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

    A folder that cannot be written to is read: what it lacks is computed anew each time.

    Args:
        folder: made if it does not exist.
        key: what the features are computed with: plain values.

    Raises:
        ConfigError: the folder holds features that were computed with something else, a file that
            is no shard, or cannot be used.
    """

    def __init__(self, folder: Path, key: dict[str, Any]) -> None:
        self.folder = folder
        _check_key(folder, key)
        self._fresh: dict[str, Features] = {}
        self._fresh_bytes = self._written_bytes = self._in_vain = 0
        self._is_read_only = False
        self._shards: list[Path] = []
        self._damaged: set[int] = set()
        # Both are sorted by the first halves of the keys: a search needs those in one piece.
        self._keys, self._entries = np.zeros(0, np.uint64), np.zeros(0, ENTRY)
        self._stamp = 0
        self._read_new_shards()

    def __len__(self) -> int:
        """Count the items, those twice that two processes have computed."""
        return len(self._entries) + len(self._fresh)

    def find(self, key: str) -> Features | None:
        """Return the features of an item, also if another process has written them meanwhile.

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
        # The folder is only looked at for what is not known: with a full cache, never.
        found = self._look_up(key)
        if found is None and self._read_new_shards():
            found = self._look_up(key)
        return found

    def put(self, key: str, features: Features) -> None:
        """Keep the features of an item; they are on the disk after the next `flush`.

        Raises:
            DiskFullError: there is no room for a shard.
        """
        # Nothing is kept that can never be written, or a long run would fill the memory with it.
        if self._is_read_only:
            return
        self._fresh[key] = features
        self._fresh_bytes += features.values.nbytes
        # Shards grow with what is there: few files in the end, and little lost at the beginning.
        if self._fresh_bytes >= min(max(FEWEST_BYTES, self._written_bytes // 8), MOST_BYTES):
            self.flush()

    def flush(self) -> None:
        """Write what is new to a shard of its own.

        Raises:
            DiskFullError: there is no room for it.
        """
        if not self._fresh:
            return
        tensors: dict[str, Tensor] = {}
        checksums = []
        for key, features in sorted(self._fresh.items()):
            values, seconds = features.values.contiguous(), np.array(features.seconds, np.float64)
            tensors |= {key: values, key + SECONDS: torch.from_numpy(seconds)}
            checksums.append(_checksum(key, values.numpy(), seconds))
        # A tensor of its own and not metadata, so that tools that copy tensors keep it.
        tensors[CHECKSUMS] = torch.tensor(checksums, dtype=torch.int64)
        try:
            with atomic_write(self.folder / f"{uuid.uuid4().hex}.safetensors") as path:
                save_file(tensors, path)
        except OSError as error:
            if not is_read_only(error):
                raise
            # The run is worth more than the cache: it goes on and computes what it cannot keep.
            self._is_read_only = True
            logger.warning(
                "run.feature_cache: %s cannot be written to (%s): features that are not in it are "
                "computed in every epoch",
                *(self.folder, error.strerror),
            )
        self._written_bytes += self._fresh_bytes
        self._fresh, self._fresh_bytes, self._in_vain = {}, 0, 0

    def _look_up(self, key: str) -> Features | None:
        first_half, rest = _halves(key)
        name = np.uint64(first_half)
        place, end = (int(np.searchsorted(self._keys, name, side)) for side in SIDES)
        # Several, where two processes computed the item or one copy is damaged.
        for entry in self._entries[place:end]:
            if entry["rest"] == rest and (found := self._read(key, entry)) is not None:
                return found
        return None

    def _read(self, key: str, entry: np.void) -> Features | None:
        """Read an item from its shard; None if it is not, or no longer, what was written."""
        number = int(entry["shard"])
        # Opened for every item: thousands of shards would need more open files than there may be.
        values = np.empty(tuple(entry["shape"]), np.float16)
        seconds = np.empty(entry["seconds"], np.float64)
        try:
            with self._shards[number].open("rb", buffering=0) as file:
                for array, offset in ((seconds, "seconds_offset"), (values, "offset")):
                    file.seek(int(entry[offset]))
                    file.readinto(array.reshape(-1).view(np.uint8).data)
        except OSError as error:
            problem = str(error.strerror).lower()
        else:
            if _checksum(key, values, seconds) == entry["check"]:
                return Features(torch.from_numpy(values), seconds.tolist())
            problem = "its bytes have changed, or it was cut short"
        if number not in self._damaged:
            self._damaged.add(number)
            logger.warning(
                "run.feature_cache: %s is damaged (%s): the items concerned are computed again; "
                "delete it when no run uses it",
                *(self._shards[number], problem),
            )
        return None

    def _read_new_shards(self) -> bool:
        """Take notice of shards that have come since; return whether there were any."""
        try:
            stamp = self.folder.stat().st_mtime_ns
        except OSError:  # the folder is gone: everything is computed again
            return False
        if stamp == self._stamp:
            return False
        # The time of the folder changes when a shard gets its name, so that a look costs one call
        # of the system while nothing is new.
        self._stamp = stamp
        new = sorted(set(self.folder.glob(SHARDS)) - set(self._shards))
        for path in new:
            keys, entries = _read_entries(path)
            entries["shard"] = len(self._shards)
            self._keys = np.concatenate([self._keys, keys])
            self._entries = np.concatenate([self._entries, entries])
            self._shards.append(path)
        order = np.argsort(self._keys, kind="stable")
        self._keys, self._entries = self._keys[order], self._entries[order]
        return bool(new)


SIDES: tuple[Any, ...] = ("left", "right")


def _check_key(folder: Path, key: dict[str, Any]) -> None:
    """Write what the features of a folder are computed with, or compare it."""
    # Two processes may write it at once: each writes its own file, and the later name wins. Both
    # read it back, so that either learns of a key that is not its own.
    path = folder / KEY
    try:
        if not path.exists():
            with atomic_write(path) as temporary:
                temporary.write_text(json.dumps(key, indent=1) + "\n", encoding="utf-8")
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        found = None
    except OSError as error:
        raise ConfigError(
            f"run.feature_cache: {path} cannot be read or written: {str(error.strerror).lower()}; "
            "give another folder"
        ) from error
    if not isinstance(found, dict):
        raise ConfigError(f"run.feature_cache: {path} is damaged; delete {folder}")
    given = json.loads(json.dumps(key))  # as it comes back: tuples are lists
    differing = sorted(name for name in {*found, *given} if found.get(name) != given.get(name))
    if differing:
        name = differing[0]
        raise ConfigError(
            f"run.feature_cache: the features in {folder} were computed with another "
            f"{', '.join(differing)} ({name}: {found.get(name)} there, {given.get(name)} now); "
            "give another folder, or delete this one"
        )


def _read_entries(path: Path) -> tuple[NDArray[np.uint64], NDArray[np.void]]:
    """Read the first halves of the keys of a shard, and where its items lie; not their values.

    Raises:
        ConfigError: it is cut short, damaged, or not a file that this cache wrote.
    """
    try:
        with path.open("rb") as file:
            size = int.from_bytes(file.read(8), "little")
            start, end = 8 + size, path.stat().st_size
            header = json.loads(file.read(size) if start <= end else b"")
            header.pop("__metadata__", None)
            checks = _span(header.pop(CHECKSUMS), "I64", start, end)
            file.seek(checks[0])
            checksums = np.frombuffer(file.read(8 * checks[1][0]), np.int64).tolist()
        # In the order in which the checksums were written.
        names = sorted(name for name in header if not name.endswith(SECONDS))
        keys, entries = np.zeros(len(names), np.uint64), np.zeros(len(names), ENTRY)
        for number, (name, check) in enumerate(zip(names, checksums, strict=True)):
            keys[number], rest = _halves(name)
            offset, shape = _span(header[name], "F16", start, end)
            times, (count,) = _span(header[name + SECONDS], "F64", start, end)
            entries[number] = (rest, 0, offset, shape, times, count, check & 0xFFFFFFFF)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise ConfigError(
            f"run.feature_cache: {path} is damaged or no shard of this cache "
            f"({type(error).__name__}: {error}); delete it, and its items will be computed again"
        ) from error
    except OSError as error:
        raise ConfigError(
            f"run.feature_cache: {path} cannot be read: {str(error.strerror).lower()}"
        ) from error
    return keys, entries


def _span(tensor: dict[str, Any], dtype: str, start: int, end: int) -> tuple[int, tuple[int, ...]]:
    """Return where a tensor of a header lies in the file, and its shape."""
    first, last = tensor["data_offsets"]
    shape = tuple(tensor["shape"])
    size = int(np.prod(shape, dtype=np.int64)) * int(dtype[1:]) // 8
    if tensor["dtype"] != dtype or size != last - first or not 0 <= first <= last <= end - start:
        raise ValueError(f"{dtype} tensor expected where {tensor} stands")
    return start + first, shape


def _checksum(key: str, values: NDArray[Any], seconds: NDArray[Any]) -> int:
    """Return the CRC-32 of an item, which costs 0.1 ms for the 0.4 MB of a clip of 8 frames."""
    check = zlib.crc32(f"{key} {values.dtype} {values.shape}".encode())
    return zlib.crc32(values.data, zlib.crc32(seconds.data, check))


def _halves(key: str) -> tuple[int, int]:
    """Return a key of 32 hexadecimal digits as two numbers."""
    if len(key) != 32:
        raise ValueError(f"{key!r} is no key of an item")
    return int(key[:16], 16), int(key[16:], 16)
