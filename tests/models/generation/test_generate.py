"""Choosing tokens: the original's greedy and beam ids, and where an answer ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden_model import golden, golden_model
from tests.models.golden_runs import chat_outputs
from video_llama.models.generation.generate import GenerationSettings, generate

CASES = ["vicuna/video", "vicuna/audiovideo", "llama_v2/video", "llama_v2/audiovideo"]
GREEDY = {"temperature": 0.0, "min_new_tokens": 0}


def context(case: str) -> Tensor:
    """The stored prompt embeddings; a lone clone has a sample only and computes them."""
    stored = golden().case(f"chat/{case}")["context_emb"]
    if len(stored.values) == torch.Size(stored.shape).numel():
        return stored.whole()
    return chat_outputs(f"chat/{case}")["context_emb"]


def generated(embeddings: Tensor, stop_ids: list[list[int]], **options: Any) -> list[int]:
    settings = GenerationSettings(**{**GREEDY, **options})
    return list(generate(golden_model().language_model, embeddings, settings, stop_ids))


@pytest.mark.parametrize("case", CASES)
def test_ids_are_those_of_the_original(case: str) -> None:
    expected = golden().case(f"chat/{case}")
    embeddings = context(case)
    # transformers 4.28 put a BOS before the generated ids.
    assert [1, *generated(embeddings, [[2]], max_new_tokens=24)] == (
        expected["greedy_ids"].values.tolist()
    )
    beams = generated(embeddings, [[2]], max_new_tokens=12, num_beams=3, repetition_penalty=1.2)
    assert [1, *beams] == expected["beam3_rep1p2_ids"].values.tolist()


def test_an_answer_ends_with_the_first_stop_sequence() -> None:
    embeddings = context(CASES[0])
    ids = generated(embeddings, [[2]], max_new_tokens=12)
    for stop in ([ids[4]], ids[3:5], ids[:2]):
        end = next(i for i in range(12) if ids[i + 1 - len(stop) : i + 1] == stop)
        assert generated(embeddings, [[2], stop], max_new_tokens=12) == ids[: end + 1]


def test_beams_end_with_the_first_stop_sequence() -> None:
    embeddings = context(CASES[0])
    ids = generated(embeddings, [[2]], max_new_tokens=8, num_beams=2)
    stopped = generated(embeddings, [[2], ids[3:5]], max_new_tokens=8, num_beams=2)
    assert stopped[-2:] == ids[3:5] or not any(
        stopped[i : i + 2] == ids[3:5] for i in range(len(stopped))
    )


@pytest.mark.parametrize("beams", [1, 2])
def test_no_stop_mark_is_taken_too_early(beams: int) -> None:
    embeddings = context(CASES[0])
    ids = generated(embeddings, [[2]], max_new_tokens=8, num_beams=beams)
    stop = ids[:1]
    later = generated(embeddings, [[2], stop], max_new_tokens=8, min_new_tokens=6, num_beams=beams)
    assert len(later) >= 6
    assert stop[0] not in later[:6]


def test_repetition_penalty_counts_the_answer_alone() -> None:
    embeddings = context(CASES[1])
    plain = generated(embeddings, [[2]], max_new_tokens=24)
    assert len(set(plain)) < 24
    assert len(set(generated(embeddings, [[2]], max_new_tokens=24, repetition_penalty=5.0))) == 24


def test_top_p_of_nothing_is_greedy() -> None:
    embeddings = context(CASES[0])
    sampled = generated(embeddings, [[2]], max_new_tokens=8, temperature=1.0, top_p=0, seed=3)
    assert sampled == generated(embeddings, [[2]], max_new_tokens=8)


def test_tokens_are_given_out_as_they_are_chosen() -> None:
    settings = GenerationSettings(**{**GREEDY, "max_new_tokens": 1_000_000})
    ids = generate(golden_model().language_model, context(CASES[0]), settings, [[2]])
    assert [next(ids) for _ in range(3)] == generated(context(CASES[0]), [[2]], max_new_tokens=3)
