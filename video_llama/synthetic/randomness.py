"""Random numbers of the world: functions of a seed, a purpose and counters, with no state to save.

Unlike `datasets.randomness` this needs no torch, so that many processes start quickly.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TypeVar

import numpy as np

Item = TypeVar("Item")


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """A generator that is the same in every process and on every machine.

    Philox (Salmon and others, Parallel Random Numbers: As Easy as 1, 2, 3, 2011) is keyed by seed
    and purpose and starts at the counters.

    Args:
        seed: of the world, at least 0.
        purpose: what the numbers are for, such as `scene`.
        counters: which item of that purpose; at most three, each at least 0.
    """
    words = [0, *counters]
    words += [0] * (4 - len(words))
    key = np.array([seed, zlib.crc32(purpose.encode())], np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array(words, np.uint64)))


def dealt(deck: Sequence[Item], index: int, seed: int, purpose: str) -> Item:
    """The card that player `index` gets of a deck that is shuffled anew whenever it is used up.

    Every run of `len(deck)` indices that starts at a multiple of it gets every card once: the
    counts are balanced, and which index gets which card is random.

    Args:
        deck: the cards.
        index: whose card, from 0.
        seed: of the world.
        purpose: as in `generator`.
    """
    turn, position = divmod(index, len(deck))
    return deck[int(generator(seed, purpose, turn).permutation(len(deck))[position])]
