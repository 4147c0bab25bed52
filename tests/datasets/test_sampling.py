"""Which items a batch has, and the random numbers that decide it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from video_llama.datasets.sampling import (
    BLOCK,
    Integers,
    Mixture,
    Order,
    key_of,
    permuted,
    torch_generator,
    uniform,
)


def no_lengths(indices: Integers) -> Integers:
    return np.zeros_like(indices)


def order(size: int, **keys: Any) -> Order:
    keys = {"lengths": no_lengths, "batch_size": 3, "seed": 5, **keys}
    return Order("set", size, **keys)


def items_of(orders: list[Order], batches: int) -> list[int]:
    return [o.item(p) for number in range(batches) for o in orders for p in o.batch(number)]


def test_data_sets_are_drawn_in_proportion_to_their_ratios() -> None:
    mixture = Mixture([100, 24], seed=1)
    draws = [mixture.draw(step)[0] for step in range(20_000)]
    assert np.mean(draws) == pytest.approx(24 / 124, abs=0.01)


def test_a_ratio_of_zero_is_never_drawn() -> None:
    mixture = Mixture([0, 1, 0], seed=1)
    assert {mixture.draw(step)[0] for step in range(1000)} == {1}


def test_draws_count_the_earlier_ones_from_any_step_on() -> None:
    going = Mixture([2, 1, 1], seed=3)
    counts = [0, 0, 0]
    for step in range(BLOCK + 50):
        chosen, number = going.draw(step)
        assert number == counts[chosen]
        counts[chosen] += 1
        if step in (0, 17, BLOCK - 1, BLOCK, BLOCK + 49):
            assert Mixture([2, 1, 1], seed=3).draw(step) == (chosen, number)


def test_seeds_draw_differently() -> None:
    one, other = ([Mixture([1, 1], seed=s).draw(n)[0] for n in range(64)] for s in (1, 2))
    assert one != other


@pytest.mark.parametrize("buckets", [1, 4])
@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_every_item_comes_once_per_epoch(world_size: int, buckets: int) -> None:
    size = 3 * world_size * 8
    keys = {"world_size": world_size, "bucket_batches": buckets}
    ranks = [order(size, rank=rank, **keys) for rank in range(world_size)]
    items = items_of(ranks, 16)
    assert sorted(items[:size]) == list(range(size))
    assert sorted(items[size:]) == list(range(size))
    assert items[:size] != items[size:]


def test_an_epoch_may_end_inside_a_batch() -> None:
    items = items_of([order(7)], 7)  # 21 items: three epochs of 7
    assert [sorted(items[start : start + 7]) for start in (0, 7, 14)] == [list(range(7))] * 3


@pytest.mark.parametrize("buckets", [1, 5])
def test_ranks_have_different_items(buckets: int) -> None:
    ranks = [order(100, rank=r, world_size=4, bucket_batches=buckets) for r in range(4)]
    found = [set(items_of([rank], 8)) for rank in ranks]
    assert sum(map(len, found)) == len(set.union(*found)) == 96


def test_buckets_put_texts_of_equal_length_together() -> None:
    lengths = np.random.default_rng(0).integers(1, 1000, 4096)

    def padding(buckets: int) -> float:
        dealt = order(4096, lengths=lambda i: lengths[i], batch_size=8, bucket_batches=buckets)
        rows = [lengths[[dealt.item(p) for p in dealt.batch(n)]] for n in range(512)]
        return 1 - sum(row.sum() for row in rows) / sum(row.max() * 8 for row in rows)

    assert padding(1) > 0.4
    assert padding(16) < 0.1


def test_buckets_are_visited_in_no_order_of_length() -> None:
    lengths = np.arange(640)
    dealt = order(640, lengths=lambda i: lengths[i], batch_size=8, bucket_batches=16)
    means = [np.mean([dealt.item(p) for p in dealt.batch(n)]) for n in range(16)]
    assert means != sorted(means)
    assert means != sorted(means, reverse=True)


def test_a_small_set_is_not_sorted_into_batches_of_one_item() -> None:
    dealt = order(4, lengths=lambda i: i, batch_size=2, bucket_batches=8)
    assert all(len(set(items_of([dealt], 8)[n : n + 2])) == 2 for n in range(0, 16, 2))


def test_more_items_per_step_than_the_set_has() -> None:
    assert sorted(items_of([order(2, batch_size=5)], 2)) == [0] * 5 + [1] * 5


def test_a_batch_does_not_depend_on_those_before() -> None:
    keys = {"lengths": lambda i: i % 13, "bucket_batches": 4}
    going = order(50, **keys)
    for number in range(40):
        assert going.batch(number) == order(50, **keys).batch(number)


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
