"""Which frames are chosen."""

from __future__ import annotations

import json
from fractions import Fraction

import pytest
import torch

from tests.reference import GOLDEN
from video_llama.processors.sampling import (
    Timeline,
    at_rate,
    frame_window,
    headtail,
    timeline,
    uniform,
)

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


def steady(count: int, fps: float) -> Timeline:
    return timeline([i / fps for i in range(count)], fps=fps, tick=0.001, last=0, start=0)


def test_a_frame_per_second_until_there_are_too_many() -> None:
    quick, slow = steady(100, 25.0), steady(300, 29.97)
    assert at_rate(quick, range(100), 8, rate=1.0) == [0, 25, 50, 75]
    assert at_rate(quick, range(100), 3, rate=1.0) == uniform(range(100), 3)
    assert at_rate(quick, range(10, 14), 8, rate=100.0) == [10, 11, 12, 13]
    assert at_rate(quick, range(10, 14), 8, rate=1e12) == [10, 11, 12, 13]
    assert at_rate(slow, range(300), 8, rate=0.5) == [0, 59, 119, 179, 239, 299]


@pytest.mark.parametrize("fps", [24000 / 1001, 24.0, 25.0, 30000 / 1001, 60.0, 12.5])
@pytest.mark.parametrize("rate", [0.25, 0.5, 1.0, 2.0, 3.0, 12.5, 100.0])
def test_a_rate_of_a_steady_video_takes_the_frames_at_whole_steps(fps: float, rate: float) -> None:
    window, step = range(7, 911), max(Fraction(1), Fraction(fps) / Fraction(rate))
    exact = [7 + int(i * step) for i in range(-int(-len(window) // step))]
    assert at_rate(steady(1000, fps), window, 1000, rate=rate) == exact


def test_a_rate_follows_the_times_of_the_frames() -> None:
    slides = timeline([0, 0.1, 0.2, 5.0, 9.0], fps=10.0, tick=0.001, last=3.0, start=0)
    # The slide of second 0.2 is still shown in seconds 1 to 4.
    assert at_rate(slides, range(5), 8, rate=1.0) == [0, 2, 3, 4]
    assert at_rate(slides, range(5), 8, rate=0.2) == [0, 3, 4]
    assert frame_window(slides, start=4.0, end=9.0) == range(3, 4)
    assert frame_window(slides, start=11.0) == range(4, 5)
    assert (slides.end, slides.duration, slides.fps) == (12.0, 12.0, 5 / 12)


def test_a_constant_rate_is_exact_whatever_the_container_rounds_to() -> None:
    fps = 24000 / 1001
    rounded = [round(i / fps, 3) for i in range(5000)]
    assert timeline(rounded, fps=fps, tick=0.001, last=0.04, start=0) == steady(5000, fps)
    late = timeline([t + 2 for t in rounded], fps=fps, tick=0.001, last=0.04, start=0.5)
    assert late.seconds[:2] == [1.5, 1.5 + 1 / fps]
    assert late.duration == pytest.approx(5000 / fps)


def test_without_a_rate_or_a_last_duration_the_times_give_both() -> None:
    one = timeline([3.0], fps=None, tick=0.001, last=0, start=3.0)
    assert (one.seconds, one.end, one.fps) == ([0.0], 1.0, 1.0)
    three = timeline([0.0, 0.5, 1.0], fps=1000.0, tick=0.001, last=0, start=0)
    assert (three.seconds, three.end, three.fps) == ([0.0, 0.5, 1.0], 1.5, 2.0)


def test_the_window_is_given_in_seconds() -> None:
    assert frame_window(steady(100, 10.0)) == range(100)
    assert frame_window(steady(100, 10.0), start=2.0, end=5.0) == range(20, 50)
    assert frame_window(steady(100, 10.0), start=0.3) == range(3, 100)
    assert frame_window(steady(100, 10.0), start=0.25, end=0.26) == range(3, 4)
    assert frame_window(steady(100, 10.0), end=1e300) == range(100)


def test_indices_inside_a_window_count_from_the_start_of_the_video() -> None:
    window = frame_window(steady(100, 10.0), start=2.0, end=4.0)
    assert uniform(window, 4) == [20, 25, 30, 35]
    assert all(20 <= index < 40 for index in headtail(window, 8, random()))


def test_a_window_behind_the_end_says_how_long_the_video_is() -> None:
    with pytest.raises(ValueError, match="from 10 s is empty, it lasts 10 s"):
        frame_window(steady(100, 10.0), start=10.0)
