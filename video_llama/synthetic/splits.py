"""Deal the scenes of each split: combinations held out, sizes, speeds, sounds.

A scene is a function of (seed, split, index). Counts are balanced by dealing from shuffled decks.
Random numbers are functions of a seed, a purpose and counters, so there is no state to save; unlike
`datasets.sampling` this needs no torch, so that many processes start quickly.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal, TypeVar, get_args

import numpy as np

from video_llama.synthetic.scene import (
    BACKGROUNDS,
    COLOURS,
    GAP,
    KINDS,
    MOTIONS,
    Colour,
    Kind,
    Motion,
    Scene,
    Sight,
    Sound,
)

T = TypeVar("T")


def generator(seed: int, purpose: str, *counters: int) -> np.random.Generator:
    """Return a generator that is the same in every process and on every machine.

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


def dealt(deck: Sequence[T], index: int, seed: int, purpose: str) -> T:
    """Deal player `index` a card of a deck that is shuffled anew whenever it is used up.

    Every run of `len(deck)` indices that starts at a multiple of it gets every card once: the
    counts are balanced, and which index gets which card is random.

    Args:
        index: whose card, from 0.
        purpose: as in `generator`.
    """
    turn, position = divmod(index, len(deck))
    return deck[int(generator(seed, purpose, turn).permutation(len(deck))[position])]


Split = Literal["train", "valid", "test", "test_pairs"]
Layout = Literal["one", "two", "order", "empty", "silent", "contradictory"]
Triple = tuple[Kind, Colour, Motion]
Range = tuple[float, float]

SPLITS: tuple[Split, ...] = get_args(Split)
"""Training, validation, and tests on held-out triples and on held-out pairs."""


def split_of(kind: Kind, colour: Colour, motion: Motion) -> Split:
    """Return the only split in which a thing is seen.

    Latin squares: of every kind and motion one colour is held out for validation and one for the
    test; likewise one kind of every colour and motion. Of every other kind one colour is never seen
    outside `test_pairs`, whatever the motion.
    """
    # `shift` runs along the diagonals of the square of kinds and colours.
    number = KINDS.index(kind)
    shift = (COLOURS.index(colour) - number) % len(COLOURS)
    if shift == 5 and number % 2 == 0:
        return "test_pairs"
    # Opposite motions, which stand in pairs, are held out together: shuffled frames must not tell
    # them apart by what is rare.
    pair = MOTIONS.index(motion) // 2
    if shift == pair:
        return "test"
    if shift == (pair + 1) % 4:
        return "valid"
    return "train"


def triples(split: Split) -> list[Triple]:
    """List the (kind, colour, motion) combinations of a split."""
    return [triple for triple in product(KINDS, COLOURS, MOTIONS) if split_of(*triple) == split]


@dataclass(frozen=True, kw_only=True)
class SoundRanges:
    """Where the parameters of sounds come from; each is drawn from one of its ranges.

    Attributes:
        pitch: factor on frequencies.
        tempo: factor on rhythms.
        loudness: largest amplitude.
        noise: standard deviation of the hiss.
    """

    pitch: tuple[Range, ...]
    tempo: tuple[Range, ...]
    loudness: tuple[Range, ...]
    noise: tuple[Range, ...]


_TEST_SOUNDS = SoundRanges(
    pitch=((0.75, 0.82), (1.22, 1.33)),
    tempo=((0.75, 0.82), (1.22, 1.33)),
    loudness=((0.15, 0.24), (0.86, 0.95)),
    noise=((0.0072, 0.01),),
)
SOUND_RANGES: dict[Split, SoundRanges] = {
    "train": SoundRanges(
        pitch=((0.88, 1.14),), tempo=((0.88, 1.14),), loudness=((0.3, 0.8),), noise=((0.0, 0.006),)
    ),
    "valid": SoundRanges(
        pitch=((0.83, 0.87), (1.15, 1.21)),
        tempo=((0.83, 0.87), (1.15, 1.21)),
        loudness=((0.25, 0.29), (0.81, 0.85)),
        noise=((0.0062, 0.007),),
    ),
    "test": _TEST_SOUNDS,
    "test_pairs": _TEST_SOUNDS,
}
"""No value of a test sound, or of a validation sound, occurs in training."""

LAYOUTS: dict[Split, tuple[tuple[Layout, int], ...]] = {
    "train": (("one", 10), ("two", 4), ("order", 8), ("empty", 2), ("silent", 2)),
    "valid": (("one", 7), ("two", 5), ("order", 8), ("empty", 2), ("silent", 4)),
    "test": (("one", 7), ("two", 5), ("order", 8), ("empty", 2), ("silent", 4)),
    "test_pairs": (("one", 7), ("two", 5), ("order", 8), ("empty", 2), ("silent", 4)),
}
"""How many scenes of a deck have which layout; validation and tests add contradictory ones."""

CONTRADICTORY = 6
"""Contradictory scenes that are added to each deck of validation and tests."""

DURATIONS = (3.5, 4.0, 4.5)
"""Seconds of a scene; whatever is in it, so that the times of its frames tell nothing."""

SWITCH: Range = (0.40, 0.46)
"""Share of the time at which it follows: of eight frames, four show the first."""

SIZES: dict[int, Range] = {1: (0.40, 0.56), 2: (0.30, 0.36)}
"""Sizes of one thing and of each of two, as shares of the shorter side."""

PATHS: dict[int, Range] = {1: (0.30, 0.42), 2: (0.26, 0.36)}
"""Lengths of the paths of one thing and of two."""

GROWTHS: dict[int, Range] = {1: (1.9, 2.5), 2: (1.6, 1.9)}
"""Largest size over smallest, of one thing and of two."""

_MARGIN = 0.02


def sample_scene(seed: int, split: Split, index: int) -> Scene:
    """Sample scene `index` of a split."""
    # The order of draws below fixes every scene of a seed: add new ones at the end.
    layout = dealt(layout_deck(split), index, seed, f"layout/{split}")
    rng = generator(seed, f"scene/{split}", index)
    sights = tuple(_sights(rng, seed, split, index, layout))
    sounds = tuple(_sounds(rng, split, layout, [sight.kind for sight in sights]))
    return Scene(
        sights=sights,
        sounds=sounds,
        duration=_choice(rng, DURATIONS),
        switch=_uniform(rng, SWITCH),
        background=_choice(rng, BACKGROUNDS),
        noise=_from_ranges(rng, SOUND_RANGES[split].noise),
    )


def render_seed(seed: int, split: Split, index: int) -> int:
    """Return the seed with which a scene is drawn, played and put into words."""
    return int(generator(seed, f"render/{split}", index).integers(1 << 62))


def layout_deck(split: Split) -> list[Layout]:
    """Return one card for every scene of a round."""
    deck = [layout for layout, count in LAYOUTS[split] for _ in range(count)]
    return deck if split == "train" else deck + ["contradictory"] * CONTRADICTORY


def _sights(
    rng: np.random.Generator, seed: int, split: Split, index: int, layout: Layout
) -> list[Sight]:
    if layout == "empty":
        return []
    if layout == "order":
        # What follows one another stands still: how far a thing has come must not tell the order.
        still = [triple for triple in triples(split) if triple[2] == "still"]
        first = dealt(still, index, seed, f"first/{split}")
        second = _choice(rng, [triple for triple in still if triple[0] != first[0]])
        return [_sight(rng, triple, number=1) for triple in (first, second)]
    triple = dealt(triples(split), index, seed, f"triple/{split}")
    two = layout == "two" or (layout != "one" and rng.random() < 0.3)
    return [_sight(rng, triple, number=2 if two else 1)]


def _sight(rng: np.random.Generator, triple: Triple, *, number: int) -> Sight:
    # All numbers are drawn whether or not the motion needs them: one more motion would not
    # change the scenes of the others.
    kind, colour, motion = triple
    size, path = _uniform(rng, SIZES[number]), _uniform(rng, PATHS[number])
    growth, stacked = _uniform(rng, GROWTHS[number]), rng.random() < 0.5
    across, along = motion in ("left", "right"), motion in ("up", "down")
    grows = motion in ("growing", "shrinking")
    stacked = number == 2 and (across or (stacked and not along))
    # Half of what the thing sweeps; the centre may be anywhere that keeps it inside the picture.
    half = size * growth / (1 + growth) if grows else size / 2
    apart = GAP if number == 2 else 0.0
    reach_x = half + (path / 2 if across else 0.0) + (0.0 if stacked else apart)
    reach_y = half + (path / 2 if along else 0.0) + (apart if stacked else 0.0)
    return Sight(
        kind=kind,
        colour=colour,
        motion=motion,
        number=number,
        size=size,
        x=_place(rng, reach_x),
        y=_place(rng, reach_y),
        speed=growth if grows else path if across or along else 0.0,
        stacked=stacked,
    )


def _place(rng: np.random.Generator, reach: float) -> float:
    slack = max(0.0, 0.5 - _MARGIN - reach)
    return 0.5 + _uniform(rng, (-slack, slack))


def _sounds(
    rng: np.random.Generator, split: Split, layout: Layout, kinds: Sequence[Kind]
) -> list[Sound]:
    if layout == "silent":
        return []
    if layout == "empty":
        kinds = [_choice(rng, [triple[0] for triple in triples(split)])]
    elif layout == "contradictory":
        kinds = [_choice(rng, [kind for kind in KINDS if kind != kinds[0]])]
    return [sample_sound(rng, split, kind) for kind in kinds]


def sample_sound(rng: np.random.Generator, split: Split, kind: Kind) -> Sound:
    """Sample a sound with parameters from the ranges of a split."""
    ranges = SOUND_RANGES[split]
    return Sound(
        kind=kind,
        pitch=_from_ranges(rng, ranges.pitch),
        tempo=_from_ranges(rng, ranges.tempo),
        loudness=_from_ranges(rng, ranges.loudness),
    )


def _uniform(rng: np.random.Generator, limits: Range) -> float:
    low, high = limits
    return low + (high - low) * rng.random()


def _choice(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]


def _from_ranges(rng: np.random.Generator, ranges: Sequence[Range]) -> float:
    return _uniform(rng, _choice(rng, ranges))
