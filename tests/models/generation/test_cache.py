"""Keys and values that grow in place, and what is known of a new prompt."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from tests.golden_model import golden_model
from video_llama.models.generation.cache import GrowingCache, PrefixCache, cache_arguments


def logits_of(cache: GrowingCache | DynamicCache, steps: list[int], batch: int = 1) -> Tensor:
    """Logits of a sequence that is read in steps of these lengths."""
    model = golden_model().language_model
    ids = torch.randint(3, 90, (batch, sum(steps)), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        outputs = [
            model(input_ids=part, **cache_arguments(cache)).logits
            for part in ids.split(steps, dim=1)
        ]
    return torch.cat(outputs, dim=1)


@pytest.mark.parametrize("steps", [[5], [3, 1, 1], [100, 60, 1, 1], [1] * 4])
def test_a_growing_cache_computes_what_the_library_computes(steps: list[int]) -> None:
    config = golden_model().language_model.config
    ours = logits_of(GrowingCache(config), steps, batch=2)
    torch.testing.assert_close(ours, logits_of(DynamicCache(config=config), steps, batch=2))


def test_no_argument_of_the_library_is_one_that_it_gives_up() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)
        logits_of(GrowingCache(golden_model().language_model.config), [3, 1])


def test_a_token_is_written_into_its_place() -> None:
    cache = GrowingCache(golden_model().language_model.config)
    logits_of(cache, [10])
    before, buffers = cache.num_bytes, [layer.keys.data_ptr() for layer in cache._layers]
    logits_of(cache, [1] * 20)
    assert [layer.keys.data_ptr() for layer in cache._layers] == buffers
    assert cache.num_bytes == before
    logits_of(cache, [200])
    assert before < cache.num_bytes < 2 * 230 / 10 * before
    assert cache.get_seq_length() == 230


def test_what_is_forgotten_is_written_over() -> None:
    config = golden_model().language_model.config
    cache = GrowingCache(config)
    logits_of(cache, [50])
    cache.truncate(0)
    torch.testing.assert_close(logits_of(cache, [30]), logits_of(GrowingCache(config), [30]))
    cache.truncate(99)
    assert cache.get_seq_length() == 30


def test_rows_can_leave_and_be_repeated() -> None:
    cache = GrowingCache(golden_model().language_model.config)
    logits_of(cache, [6], batch=3)
    keys = cache._layers[0].states()[0].clone()
    cache.keep_rows(torch.tensor([2, 0]))
    assert torch.equal(cache._layers[0].states()[0], keys[[2, 0]])
    copy = cache.repeated(2)
    assert torch.equal(copy.layers[0].keys, keys[[2, 2, 0, 0]])


@pytest.mark.parametrize(
    ("known", "new", "most", "kept"),
    [
        ([], [1, 2], 1, 0),
        ([1, 2, 3], [1, 2, 4, 5], 3, 2),
        ([1, 2, 3], [1, 2, 3], 2, 2),
        ([1, 2, 3], [1, 2, 3, 4], 3, 3),
        ([1, 2, 3], [9, 2, 3], 2, 0),
        ([1, 2, 3, 4], [1, 2], 1, 1),
        ([-5, -5, 7], [-5, -6, 7], 2, 1),
    ],
)
def test_the_common_beginning_is_kept(
    known: list[int], new: list[int], most: int, kept: int
) -> None:
    cache = PrefixCache()
    cache.marks = list(known)
    assert cache.keep_common(new, most) == kept
    assert cache.marks == known[:kept]


def test_a_step_without_marks_does_not_count() -> None:
    config = golden_model().language_model.config
    cache = PrefixCache()
    logits_of(cache.states(config), [4])
    cache.marks = [1, 2]
    assert cache.states(config).get_seq_length() == 2
    cache.clear()
    assert cache.num_bytes == 0
