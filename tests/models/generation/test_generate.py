"""Choosing tokens: the original's greedy and beam ids, and where an answer ends."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden_model import build_golden, golden, golden_model
from tests.models.golden_runs import chat_outputs
from video_llama.models.generation import generate as engine
from video_llama.models.generation.cache import PrefixCache
from video_llama.models.generation.generate import AnswerText, Row, generate
from video_llama.models.generation.settings import GenerationSettings

CASES = ["vicuna/video", "vicuna/audiovideo", "llama_v2/video", "llama_v2/audiovideo"]
GREEDY = {"temperature": 0.0, "min_new_tokens": 0}


def row_of(embeds: Tensor, stop_ids: list[list[int]], **options: Any) -> Row:
    settings = GenerationSettings(**{**GREEDY, **options})
    return Row(inputs_embeds=embeds, settings=settings, stop_ids=stop_ids)


def ids_of(*rows: Row) -> list[int]:
    """The tokens of the last row, when all have ended."""
    for _ in generate(golden_model().language_model, rows):
        pass
    return rows[-1].ids


def context(case: str) -> Tensor:
    """The stored prompt embeddings; a lone clone has a sample only and computes them."""
    stored = golden().case(f"chat/{case}")["context_emb"]
    if len(stored.values) == torch.Size(stored.shape).numel():
        return stored.whole()
    return chat_outputs(f"chat/{case}")["context_emb"]


def generated(embeddings: Tensor, stop_ids: list[list[int]], **options: Any) -> list[int]:
    return ids_of(row_of(embeddings[0], stop_ids, **options))


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
    row = row_of(context(CASES[0])[0], [[2]], max_new_tokens=1_000_000)
    steps = generate(golden_model().language_model, [row])
    assert [next(steps).ids[-1] for _ in range(3)] == row.ids
    assert row.ids == generated(context(CASES[0]), [[2]], max_new_tokens=3)
    row.stop()
    assert list(steps) == []
    assert not row.finished


def prompts() -> list[Tensor]:
    """Prompts of unequal lengths, the longest not the first."""
    random = torch.Generator().manual_seed(0)
    return [embedded(torch.randint(3, 100, (n,), generator=random)) for n in (5, 40, 1, 17, 17)]


def embedded(ids: Tensor | list[int]) -> Tensor:
    """(L,) ids to (L, D) embeddings."""
    return golden_model().embed(torch.as_tensor(ids)[None], None)[0].detach()


CHOICES: list[dict[str, Any]] = [
    {},
    {"max_new_tokens": 3},
    {"temperature": 1.3, "top_p": 0.95, "seed": 4, "min_new_tokens": 8},
    {"repetition_penalty": 3},
    {"temperature": 0.7, "seed": 1, "max_new_tokens": 20},
]


@pytest.mark.parametrize("stop_ids", [[[2]], [[2], [7], [100, 9]]])
@pytest.mark.parametrize("beams", [1, 2])
def test_each_row_answers_as_if_alone(stop_ids: list[list[int]], beams: int) -> None:
    options = [{"max_new_tokens": 12, "min_new_tokens": 1, **chosen} for chosen in CHOICES]
    options[3]["num_beams"] = beams
    several = [
        [row_of(p, stop_ids, **o) for p, o in zip(prompts(), options, strict=True)]
        for _ in range(2)
    ]
    for row in several[0]:
        ids_of(row)
    ids_of(*several[1])
    alone, together = ([row.ids for row in rows] for rows in several)
    assert together == alone
    assert len({len(ids) for ids in alone}) > 2  # rows leave the batch one after the other


def test_a_row_leaves_the_batch_when_it_is_stopped() -> None:
    rows = [row_of(p, [[2]], max_new_tokens=12, min_new_tokens=12) for p in prompts()]
    for row in generate(golden_model().language_model, rows):
        if len(row.ids) == rows.index(row) + 1:
            row.stop()
    assert [len(row.ids) for row in rows] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("chunk", [512, 4])
def test_rows_of_a_batch_start_from_their_own_caches_and_leave_them(
    chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine, "PREFILL_CHUNK", chunk)
    random = torch.Generator().manual_seed(1)
    texts = [torch.randint(3, 100, (n,), generator=random).tolist() for n in (9, 30, 14)]
    caches: list[PrefixCache | None] = [PrefixCache(), PrefixCache(), None]
    options: dict[str, Any] = {"max_new_tokens": 6, "min_new_tokens": 6}
    for turn in range(3):
        rows = [row_of(embedded(ids), [[2]], **options) for ids in texts]
        for row, ids, cache in zip(rows, texts, caches, strict=True):
            row.cache, row.marks = cache, list(ids)
        ids_of(*rows)
        for row, ids, cache in zip(rows, texts, caches, strict=True):
            assert row.ids == ids_of(row_of(embedded(ids), [[2]], **options))
            assert cache is None or cache.marks == [*ids, *row.ids[:-1]]
        texts = [[*ids, *row.ids, 5 + turn] for ids, row in zip(texts, rows, strict=True)]
        caches[2] = caches[2] or PrefixCache()


def test_only_what_no_cache_knows_is_computed() -> None:
    ids, cache, steps = list(range(3, 40)), PrefixCache(), []
    model = golden_model().language_model

    def computed(module: Any, args: Any, kwargs: dict[str, Any]) -> None:
        steps.append(
            next(kwargs[k].shape[:2] for k in ("inputs_embeds", "input_ids") if k in kwargs)
        )

    first = row_of(embedded(ids), [[2]], max_new_tokens=1)
    first.cache, first.marks = cache, ids
    ids_of(first)
    rows = [row_of(embedded(ids), [[2]], max_new_tokens=3) for _ in range(2)]
    second = PrefixCache()
    second.store(cache.states(model.config), 0, 0, ids[:20])
    for row, known in zip(rows, (cache, second), strict=True):
        row.cache, row.marks = known, list(ids)
    handle = model.register_forward_pre_hook(computed, with_kwargs=True)
    ids_of(*rows)
    handle.remove()
    assert steps == [(2, 17), (2, 1), (2, 1)]
    assert rows[0].ids == rows[1].ids == generated(embedded(ids)[None], [[2]], max_new_tokens=3)


@pytest.mark.parametrize("rows", [1, 3])
def test_the_loop_waits_for_the_device_once_a_step(
    rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every transfer to the host stops the queue of a GPU; one a step is needed, for stop rules."""
    waits: list[str] = []
    for name in ("tolist", "item", "__int__", "__bool__", "__float__", "nonzero", "cpu"):
        method = getattr(Tensor, name)

        def waiting(t: Tensor, *a: Any, name: str = name, method: Any = method) -> Any:
            waits.append(name)
            return method(t, *a)

        monkeypatch.setattr(Tensor, name, waiting)
    lengths = (5, 9, 5)[:rows]
    batch = [
        row_of(embedded(list(range(3, 3 + n))), [[2]], max_new_tokens=6, min_new_tokens=6)
        for n in lengths
    ]
    steps = generate(golden_model().language_model, batch)
    for _ in range(rows):
        next(steps)
    waits.clear()
    for _ in range(4 * rows):
        next(steps)
    assert waits == ["tolist"] * 4


def test_a_stop_text_ends_an_answer_however_it_is_tokenised() -> None:
    model = build_golden()
    tokenizer = model.tokenizer
    ids = tokenizer("a cat ### and", add_special_tokens=False)["input_ids"]
    text = AnswerText(["###"], tokenizer)
    row = row_of(embedded([3]), [[2]])
    row.text = text
    for token in ids:
        if row.ended:
            break
        row.take(token)
    row.text.finish()
    assert row.finished
    assert text.text == "a cat"
