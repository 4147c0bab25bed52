from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from video_llama.datasets.sampling import BLOCK, Integers, Mixture, Order


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
