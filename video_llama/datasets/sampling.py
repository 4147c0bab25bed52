"""Which items a batch has: a pure function of seed, step and rank.

Random numbers are functions of counters. They have no state to save, so a run resumes at any step,
and every process computes the same ones. All ranks draw the same data set in a step, because a rank
with pictures would only wait for one with clips. Their items differ.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Words = NDArray[np.uint64]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 6


def key_of(*parts: int | str) -> int:
    """Return a 64-bit key for a purpose, such as `key_of("crop", seed, rank, step)`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def torch_generator(*parts: int | str) -> torch.Generator:
    """Return a generator for a purpose; the same parts give the same numbers."""
    return torch.Generator().manual_seed(key_of(*parts))


def uniform(key: int, counters: Integers) -> NDArray[np.float64]:
    """Return one number in 0..1 (exclusive) for every counter."""
    numbers = _hashed(key, counters.astype(np.uint64)) >> np.uint64(11)
    fractions: NDArray[np.float64] = numbers.astype(np.float64) / float(1 << 53)
    return fractions


def permuted(positions: Integers, size: int, key: int) -> Integers:
    """Return where a pseudo-random permutation of `range(size)` sends the positions.

    A Feistel network over the next power of four, walked until the value is in range (Black and
    Rogaway, Ciphers with Arbitrary Finite Domains, 2002): no list of the permutation is needed.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    values = positions.astype(np.uint64)
    outside = np.arange(len(values))
    # The network permutes up to four times as many values as there are. One that lands outside is
    # sent on until it is inside: its orbit came from inside, so it returns there, and no two meet.
    while len(outside):
        values[outside] = _feistel(values[outside], np.uint64(half), key)
        outside = outside[values[outside] >= size]
    return values.astype(np.int64)


def _feistel(values: Words, half: np.uint64, key: int) -> Words:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = values >> half, values & mask
    for number in range(_ROUNDS):
        left, right = right, left ^ (_hashed(key + number, right) & mask)
    joined: Words = (left << half) | right
    return joined


def _hashed(key: int, counters: Words) -> Words:
    """Hash counters with the finaliser of splitmix64 (Steele, Lea and Flood, 2014)."""
    numbers: Words = (counters + np.uint64(1)) * _STEP + np.uint64(key % (1 << 64))
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    numbers = numbers ^ (numbers >> np.uint64(31))
    return numbers


BLOCK = 4096
"""Steps whose data sets are drawn together."""


class Mixture:
    """Which data set each step takes, drawn in proportion to ratios."""

    def __init__(self, ratios: Sequence[float], *, seed: int) -> None:
        self._shares = np.cumsum(ratios) / np.sum(ratios)
        self._key = key_of("mixture", seed)
        self._before = [np.zeros(len(ratios), np.int64)]
        self._block: tuple[int, Integers] = (-1, np.zeros(0, np.int64))

    def draw(self, step: int) -> tuple[int, int]:
        """Return the number of the data set of a step, and how many earlier steps took the same."""
        block, offset = divmod(step, BLOCK)
        # The counts of whole blocks are kept, so that a step far into a run, as after a resume,
        # costs one pass over the blocks before it and later steps only their own block.
        while len(self._before) <= block:
            last = self._draws(len(self._before) - 1)
            counts = np.bincount(last, minlength=len(self._shares))
            self._before.append(self._before[-1] + counts)
        draws = self._draws(block)
        chosen = int(draws[offset])
        return chosen, int(self._before[block][chosen] + np.sum(draws[:offset] == chosen))

    def _draws(self, block: int) -> Integers:
        if self._block[0] != block:
            steps = np.arange(block * BLOCK, (block + 1) * BLOCK)
            draws = np.searchsorted(self._shares, uniform(self._key, steps), side="right")
            self._block = (block, np.minimum(draws, len(self._shares) - 1))
        return self._block[1]


class Order:
    """In which order the items of a data set are visited, and by which rank.

    Every epoch is another permutation of the items; together the ranks visit each item once in it.
    The items of `bucket_batches` successive batches of all ranks are sorted by text length and
    dealt out again, so that texts of a batch, on all ranks, are about equally long.

    Args:
        lengths: text lengths of items, in any unit.
        batch_size: items per batch and rank.
        bucket_batches: batches that are sorted together, if they are of one epoch; 1 for none.
    """

    def __init__(
        self,
        name: str,
        size: int,
        *,
        lengths: Callable[[Integers], Integers],
        batch_size: int,
        bucket_batches: int = 1,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        self._size = size
        self._lengths = lengths
        self._shape = (bucket_batches, batch_size * world_size)
        self._mine = slice(rank, None, world_size)
        self._key = partial(key_of, name, seed)
        self._bucket: tuple[int, Integers] = (-1, np.zeros(0, np.int64))

    def batch(self, number: int) -> list[int]:
        """Return the positions of the items of a batch, counted from 0 over all epochs."""
        bucket, slot = divmod(number, self._shape[0])
        if self._bucket[0] != bucket:
            self._bucket = (bucket, self._deal(bucket))
        positions: list[int] = self._bucket[1][slot][self._mine].tolist()
        return positions

    def items(self, positions: Integers) -> Integers:
        """Return the items at positions."""
        found = np.empty_like(positions)
        epochs, places = np.divmod(positions, self._size)
        # Positions may reach over the end of an epoch, and each epoch has a permutation of its own.
        for epoch in np.unique(epochs).tolist():
            here = epochs == epoch
            found[here] = permuted(places[here], self._size, self._key("order", epoch))
        return found

    def item(self, position: int) -> int:
        """Return the item at a position."""
        return int(self.items(np.array([position]))[0])

    def _deal(self, bucket: int) -> Integers:
        """Return the positions of a bucket, (batches, items of all ranks)."""
        batches, width = self._shape
        # Without sorting, batch after batch takes the next positions. A row holds the items of all
        # ranks, so that sorting a row's items by length serves all of them alike.
        start = bucket * batches * width
        positions = np.arange(start, start + batches * width).reshape(batches, width)
        # A batch in which one epoch ends and the next begins stays as it is: if its items moved to
        # other batches, an item of the new epoch could come before the old one is through.
        first, last = positions[:, 0] // self._size, positions[:, -1] // self._size
        for epoch in np.unique(first).tolist():
            rows = np.flatnonzero((first == epoch) & (last == epoch))
            if len(rows) > 1:
                # Keyed by bucket and epoch: nothing depends on which batches were asked for before.
                key = self._key("bucket", bucket, epoch)
                positions[rows] = self._sorted(positions[rows], key)
        return positions

    def _sorted(self, positions: Integers, key: int) -> Integers:
        """Return the same positions in as many batches of about equal length, in random order."""
        places = positions.ravel()
        # A stable sort: where lengths are equal, the order of the epoch decides on every machine.
        order = np.argsort(self._lengths(self.items(places)), kind="stable")
        # Batches come in random order, or the loss would rise and fall with the length of texts.
        turns = permuted(np.arange(len(positions)), len(positions), key)
        return places[order].reshape(positions.shape)[turns]
