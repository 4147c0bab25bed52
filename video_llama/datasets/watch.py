"""Knowing what a data worker is busy with, for when it hangs or dies."""

from __future__ import annotations

import time
from collections.abc import Sequence
from types import TracebackType

import torch

from video_llama.types import ConfigError, MediaError

MAX_WORKERS = 256


class ItemError(RuntimeError):
    """An error that is no fault of the media, with the item that it came up with."""


class Watch:
    """A board in shared memory on which every worker writes its current item."""

    def __init__(self) -> None:
        self._board = torch.zeros(MAX_WORKERS, 3, dtype=torch.int64).share_memory_()

    def at(self, number: int, index: int, name: str) -> _Entry:
        """A block in which this worker is busy with an item.

        Args:
            number: of the data set.
            index: of the item.
            name: of the item, for the message of an error.

        Raises:
            ItemError: the block raised; names the item. `ConfigError` stays one, `MediaError`
                passes.
        """
        worker = torch.utils.data.get_worker_info()
        row = self._board[worker.id % MAX_WORKERS if worker else 0]
        return _Entry(row, (number, index, time.monotonic_ns()), name)

    def busy(self) -> list[tuple[int, int, int, float]]:
        """(worker, data set, item, seconds) of the busy workers, the longest first."""
        now = time.monotonic_ns()
        rows: Sequence[Sequence[int]] = self._board.tolist()
        found = [
            (worker, number, index, (now - start) / 1e9)
            for worker, (number, index, start) in enumerate(rows)
            if start
        ]
        return sorted(found, key=lambda entry: -entry[3])


class _Entry:
    def __init__(self, row: torch.Tensor, values: tuple[int, int, int], name: str) -> None:
        self._row = row
        self._values = torch.tensor(values)
        self._name = name

    def __enter__(self) -> None:
        self._row.copy_(self._values)

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._row.zero_()
        if isinstance(error, ConfigError):
            raise ConfigError(f"{self._name}: {error}") from error
        if isinstance(error, Exception) and not isinstance(error, MediaError):
            raise ItemError(f"{self._name}: {type(error).__name__}: {error}") from error
