from __future__ import annotations

import numpy as np
import pytest

from video_llama.datasets.sampling import key_of, permuted, torch_generator, uniform


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 16, 17, 100, 1000, 4097])
def test_a_permutation_visits_everything_once(size: int) -> None:
    places = permuted(np.arange(size), size, key_of("test", 3))
    assert sorted(places.tolist()) == list(range(size))


def test_another_key_is_another_permutation() -> None:
    one, other = (permuted(np.arange(1000), 1000, key_of(n)) for n in (1, 2))
    assert np.mean(one == other) < 0.01


def test_a_permutation_mixes_well() -> None:
    places = permuted(np.arange(100_000), 100_000, key_of("mix"))
    assert abs(np.corrcoef(np.arange(100_000), places)[0, 1]) < 0.02
    assert abs(np.mean(np.diff(places) > 0) - 0.5) < 0.02


def test_a_part_of_a_permutation_needs_no_list_of_it() -> None:
    size = 10**12
    places = permuted(np.array([0, 1, size - 1]), size, key_of("large"))
    assert len(set(places.tolist())) == 3
    assert places.min() >= 0
    assert places.max() < size


def test_uniform_numbers_fill_their_range() -> None:
    numbers = uniform(key_of("u"), np.arange(100_000))
    assert numbers.min() >= 0
    assert numbers.max() < 1
    counts, _ = np.histogram(numbers, bins=10, range=(0, 1))
    assert np.abs(counts / 10_000 - 1).max() < 0.05


def test_the_numbers_stay_what_they_are() -> None:
    """A run may be resumed with a later version of this file: its data must not change."""
    assert key_of("order", 42, 0) == 13090855760884144088
    assert permuted(np.arange(8), 8, 1).tolist() == [3, 7, 0, 1, 4, 5, 6, 2]
    assert uniform(1, np.arange(2)).tolist() == [0.5665615751722809, 0.7457817572627011]


def test_generators_differ_by_their_parts() -> None:
    numbers = [torch_generator("crop", 1, step).initial_seed() for step in range(100)]
    assert len(set(numbers)) == 100
    assert torch_generator("crop", 1, 5).initial_seed() == numbers[5]
