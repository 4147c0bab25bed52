"""Whole batches by number: a pure function of seed, step and rank.

A run resumes at any step, with any number of workers, and there is nothing to save.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import replace

import torch
from torch.utils.data import Dataset

from video_llama.datasets.items import Item, Items
from video_llama.datasets.sampling import Mixture, Order, key_of, torch_generator
from video_llama.types import BadItem, Batch, ConfigError, MediaError

MAX_REPLACEMENTS = 100
"""Items in a row that may be unreadable before loading gives up."""

VIEW = "view"
"""Begins the key of random numbers that several epochs share."""

MAX_WORKERS = 256

Key = tuple[int | str, ...]
"""What random numbers are drawn for: see `key_of`."""


class ItemError(RuntimeError):
    """An error that is no fault of the media, with the item that it came up with."""


class WorkerStatus:
    """What every worker is busy with, in shared memory: it outlives a worker that is killed."""

    def __init__(self) -> None:
        # A row for each worker, which nobody else writes: no killed worker can leave a lock locked.
        self._rows = torch.zeros(MAX_WORKERS, 3, dtype=torch.int64).share_memory_()

    def working_on(self, number: int, index: int, name: str) -> _Work:
        """Return a block in which this worker is busy with an item of a data set, both by number.

        The name is for the message of an error.

        Raises:
            ItemError: the block raised; names the item. `ConfigError` stays one, `MediaError`
                passes.
        """
        worker = torch.utils.data.get_worker_info()
        row = self._rows[worker.id % MAX_WORKERS if worker else 0]
        return _Work(row, (number, index, time.monotonic_ns()), name)

    def busy(self) -> list[tuple[int, int, int, float]]:
        """Return (worker, data set, item, seconds) of the busy workers, the longest first."""
        now = time.monotonic_ns()
        rows: Sequence[Sequence[int]] = self._rows.tolist()
        found = [
            (worker, number, index, (now - start) / 1e9)
            for worker, (number, index, start) in enumerate(rows)
            if start
        ]
        return sorted(found, key=lambda entry: -entry[3])


class _Work:
    def __init__(self, row: torch.Tensor, values: tuple[int, int, int], name: str) -> None:
        self._row = row
        self._values = torch.tensor(values)
        self._name = name

    def __enter__(self) -> None:
        self._row.copy_(self._values)

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._row.zero_()
        # Torch gives the error of a worker to the training process, but not what it was busy with.
        if isinstance(error, ConfigError):
            raise ConfigError(f"{self._name}: {error}") from error
        if isinstance(error, Exception) and not isinstance(error, MediaError):
            raise ItemError(f"{self._name}: {type(error).__name__}: {error}") from error


class Batches(Dataset[Batch]):
    """Batches by number. A caption batch draws one of the prompts; without any it has none."""

    def __init__(self, sources: Sequence[Items], *, prompts: Sequence[str], seed: int) -> None:
        self.sources = sources
        self.status = WorkerStatus()
        self._prompts = prompts
        self._seed = seed

    def _prompt(self, *key: int | str) -> str | None:
        return self._prompts[key_of(*key) % len(self._prompts)] if self._prompts else None

    def _first_readable(
        self, chosen: int, candidates: Iterable[int], key: Key, bad: list[BadItem]
    ) -> Item:
        """Load the first item that can be read, and list those before it."""
        # The list may hold items of earlier slots of the batch, which are no part of this search.
        before = len(bad)
        for index in candidates:
            if (item := self._readable(chosen, index, key, bad)) is not None:
                return item
        source, first = self.sources[chosen], bad[before]
        raise ConfigError(
            f"datasets.{source.name}: {min(len(source.records), MAX_REPLACEMENTS)} items in a row "
            f"cannot be read, the first is {first.path}: {first.reason}; do build_info and the "
            "processors fit the files?"
        )

    def _readable(self, chosen: int, index: int, key: Key, bad: list[BadItem]) -> Item | None:
        """Load an item; list it and return None if its media cannot be read."""
        source = self.sources[chosen]
        with self.status.working_on(chosen, index, f"{source.name}, item {index}"):
            try:
                # Views are those of the media, whatever data set and conversation these are in.
                name = source.records.locate(index)[0] if key[0] == VIEW else index
                return source.load(index, torch_generator(*key, name))
            except MediaError as error:
                item_id, path = source.records.locate(index)
                bad.append(
                    BadItem(
                        data_set=source.name, item_id=item_id, path=str(path), reason=error.reason
                    )
                )
                return None


class TrainBatches(Batches):
    """The batch of every step of a run, for one rank.

    Args:
        sources: the data sets; each batch is of one of them.
        ratios: how often each is drawn.
        bucket_batches: for each, the batches that are sorted by text length together.
        prompts: as in `Batches`.
        batch_size: items per batch and rank.
        seed: as in `Batches`.
        world_size: number of processes; their items differ.
        num_views: ways in which an item is cropped, and its frames chosen, which successive epochs
            take in turn; 0: anew in every epoch.
    """

    def __init__(
        self,
        sources: Sequence[Items],
        *,
        ratios: Sequence[float],
        bucket_batches: Sequence[int],
        prompts: Sequence[str] = (),
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        num_views: int = 0,
    ) -> None:
        super().__init__(sources, prompts=prompts, seed=seed)
        self._rank = rank
        self._num_views = num_views
        self._mixture = Mixture(ratios, seed=seed)
        self._orders = [
            Order(
                source.name,
                len(source.records),
                lengths=source.records.lengths,
                batch_size=batch_size,
                bucket_batches=count,
                seed=seed,
                rank=rank,
                world_size=world_size,
            )
            for source, count in zip(sources, bucket_batches, strict=True)
        ]

    def __getitem__(self, step: int) -> Batch:
        """Return the batch of a step, counted from 0 over the whole run.

        An item whose media cannot be read is replaced by the next one in the order of the data set.

        Raises:
            ConfigError: an item cannot be used, or `MAX_REPLACEMENTS` in a row cannot be read.
            ItemError: anything else is wrong with an item.
        """
        # Two numbers lead to the items: which data set this step takes, and which batch of that set
        # it is. Both follow from the step, so nothing has to be counted along.
        chosen, number = self._mixture.draw(step)
        source, order = self.sources[chosen], self._orders[chosen]
        size = len(source.records)
        bad: list[BadItem] = []
        items = []
        for slot, position in enumerate(order.batch(number)):
            # What takes the place of an unreadable item follows from the order alone, so that a
            # run which is repeated or resumed sees it again.
            candidates = (order.item(place) for place in _following(position, size))
            # Frames and crops are drawn anew in every step, unless a cache holds the features of a
            # few views of each item: then they depend on the item and the epoch.
            key: Key = ("augmentation", self._seed, self._rank, step, slot)
            if self._num_views:
                key = self._view(source, order.item(position), position // size)
            items.append(self._first_readable(chosen, candidates, key, bad))
        return source.collate(items, bad, self._prompt("prompt", self._seed, self._rank, step))

    def _view(self, source: Items, index: int, epoch: int) -> Key:
        """Return the key of an item's random numbers in an epoch, if its views are few."""
        first = key_of("first view", self._seed, source.name, index)
        return VIEW, (first + epoch) % self._num_views


class EvalBatches(Batches):
    """All items of a split, once each and in order, shared out among the ranks by batches.

    Data set follows data set, whose last batch may be smaller. Arguments as in `TrainBatches`.
    """

    def __init__(
        self,
        sources: Sequence[Items],
        *,
        prompts: Sequence[str] = (),
        batch_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        super().__init__(sources, prompts=prompts, seed=seed)
        # Batches and not items are dealt to the ranks: so each batch is of one data set, and the
        # same whatever the number of processes.
        batches = [
            (number, start, min(start + batch_size, len(source.records)))
            for number, source in enumerate(sources)
            for start in range(0, len(source.records), batch_size)
        ]
        self._batches = batches[rank::world_size]

    def __len__(self) -> int:
        """Count the batches of this rank."""
        return len(self._batches)

    def __getitem__(self, number: int) -> Batch:
        """Return a batch of this rank.

        Items whose media cannot be read are left out. Where none of a batch can be read, the next
        readable one stands in, so that every process has its batch, and `item_ids` is empty: the
        batch counts for nothing.

        Raises:
            ConfigError: as in `TrainBatches`.
            ItemError: as in `TrainBatches`.
        """
        chosen, start, stop = self._batches[number]
        source, size = self.sources[chosen], len(self.sources[chosen].records)
        bad: list[BadItem] = []
        loaded = (
            self._readable(chosen, index, self._key(source, index), bad)
            for index in range(start, stop)
        )
        items = [item for item in loaded if item is not None]
        stands_in = not items
        if stands_in:
            # A rank without a batch would leave the others waiting in their next exchange.
            candidates = (place % size for place in _following(stop, size))
            items = [self._first_readable(chosen, candidates, self._key(source, start), [])]
        prompt = self._prompt("evaluation prompt", self._seed, source.name, start)
        batch = source.collate(items, bad, prompt)
        return replace(batch, item_ids=[]) if stands_in else batch

    def _key(self, source: Items, index: int) -> Key:
        return "evaluation", self._seed, source.name, index


def _following(position: int, size: int) -> range:
    return range(position, position + min(size, MAX_REPLACEMENTS))
