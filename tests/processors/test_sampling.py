"""Which frames are chosen."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
import torch

from tests.reference import GOLDEN
from video_llama.processors.video import at_rate, frame_window, headtail, uniform

INDICES: dict[str, list[int]] = json.loads((GOLDEN / "processors.json").read_text())[
    "uniform_indices"
]


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("case", INDICES)
def test_uniform_indices_equal_the_originals(case: str) -> None:
    length, count = map(int, case.split(","))
    assert uniform(range(length), count) == INDICES[case]


@pytest.mark.parametrize("length", [1, 2, 17, 34, 61, 30, 4_000_000_000_001])
@pytest.mark.parametrize("count", [1, 3, 7, 11, 22, 64])
def test_uniform_is_the_exact_floor_and_never_one_too_many(length: int, count: int) -> None:
    used = min(count, length)
    exact = [int(Fraction(i * length, used)) for i in range(used)]
    assert uniform(range(length), count) == exact


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 9, 100])
@pytest.mark.parametrize("count", [1, 2, 5, 8, 33])
def test_headtail_takes_half_from_each_half_for_any_length(length: int, count: int) -> None:
    chosen = headtail(range(length), count, random())
    used = min(count, length)
    assert len(set(chosen)) == used
    assert chosen == sorted(chosen)
    assert sum(index < length // 2 for index in chosen) == used // 2
    assert chosen[0] >= 0
    assert chosen[-1] < length


def test_headtail_repeats_with_the_seed_and_ignores_global_random_state() -> None:
    torch.manual_seed(1)
    first = headtail(range(500), 8, random(5))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert headtail(range(500), 8, random(5)) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert headtail(range(500), 8, random(6)) != first


def test_headtail_can_choose_every_frame() -> None:
    seen = {index for seed in range(200) for index in headtail(range(9), 4, random(seed))}
    assert seen == set(range(9))


def test_a_frame_per_second_until_there_are_too_many() -> None:
    assert at_rate(range(100), 8, fps=25.0, rate=1.0) == [0, 25, 50, 75]
    assert at_rate(range(100), 3, fps=25.0, rate=1.0) == uniform(range(100), 3)
    assert at_rate(range(10, 14), 8, fps=25.0, rate=100.0) == [10, 11, 12, 13]
    assert at_rate(range(300), 8, fps=29.97, rate=0.5) == [0, 59, 119, 179, 239, 299]


def test_the_window_is_given_in_seconds() -> None:
    assert frame_window(100, 10.0) == range(100)
    assert frame_window(100, 10.0, start=2.0, end=5.0) == range(20, 50)
    assert frame_window(100, 10.0, start=0.3) == range(3, 100)
    assert frame_window(100, 10.0, start=0.25, end=0.26) == range(3, 4)
    assert frame_window(100, 10.0, end=1e300) == range(100)


def test_indices_inside_a_window_count_from_the_start_of_the_video() -> None:
    window = frame_window(100, 10.0, start=2.0, end=4.0)
    assert uniform(window, 4) == [20, 25, 30, 35]
    assert all(20 <= index < 40 for index in headtail(window, 8, random()))


def test_a_window_behind_the_end_says_how_long_the_video_is() -> None:
    with pytest.raises(ValueError, match="from 10 s is empty, it lasts 10 s"):
        frame_window(100, 10.0, start=10.0)
