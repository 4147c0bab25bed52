"""Random numbers that are functions of counters: no state to save, the same in every process."""

from __future__ import annotations

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Words = NDArray[np.uint64]

_STEP = np.uint64(0x9E3779B97F4A7C15)
_ROUNDS = 6


def key_of(*parts: int | str) -> int:
    """A 64-bit key for a purpose, such as `key_of("crop", seed, rank, step)`."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little")


def torch_generator(*parts: int | str) -> torch.Generator:
    """A generator for a purpose; the same parts give the same numbers."""
    return torch.Generator().manual_seed(key_of(*parts))


def uniform(key: int, counters: Integers) -> NDArray[np.float64]:
    """One number in 0..1 (exclusive) for every counter."""
    numbers = _hashed(key, counters.astype(np.uint64)) >> np.uint64(11)
    fractions: NDArray[np.float64] = numbers.astype(np.float64) / float(1 << 53)
    return fractions


def permuted(positions: Integers, size: int, key: int) -> Integers:
    """Where a pseudo-random permutation of `range(size)` sends the positions.

    A Feistel network over the next power of four, walked until the value is in range (Black and
    Rogaway, Ciphers with Arbitrary Finite Domains, 2002): no list of the permutation is needed.

    Args:
        positions: in `range(size)`.
        size: of the permutation.
        key: which permutation.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    values = positions.astype(np.uint64)
    outside = np.arange(len(values))
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
    """The finaliser of splitmix64 (Steele, Lea and Flood, 2014)."""
    numbers: Words = (counters + np.uint64(1)) * _STEP + np.uint64(key % (1 << 64))
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    numbers = numbers ^ (numbers >> np.uint64(31))
    return numbers
