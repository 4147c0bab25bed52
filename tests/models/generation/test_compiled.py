"""Compiled decoding says what eager decoding says, and leaves the same cache behind."""

from __future__ import annotations

import shutil
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden_model import build_golden
from video_llama.models.generation import compiled as compiled_decoding
from video_llama.models.generation import generate as generating
from video_llama.models.generation.cache import PrefixCache
from video_llama.models.generation.compiled import CompiledDecoder, decoder_of
from video_llama.models.generation.generate import Row, generate
from video_llama.models.generation.settings import GenerationSettings
from video_llama.models.video_llama import VideoLlama
from video_llama.types import RequestError

STOP = [[2]]


@pytest.fixture(scope="module")
def model() -> VideoLlama:
    """A model whose steps go through the static cache, but are not compiled, which takes long."""
    built = build_golden()
    language_model = built.language_model
    decoder = CompiledDecoder(language_model, backend="eager")
    vars(language_model)[compiled_decoding._ATTRIBUTE] = decoder
    return built


def prompt(model: VideoLlama, length: int = 20, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 100, (1, length), generator=generator)
    return model.embed(ids, None)[0].detach()


def row_of(embeds: Tensor, **options: Any) -> Row:
    values = {"temperature": 0.0, "max_new_tokens": 24, "min_new_tokens": 24, **options}
    settings = GenerationSettings(**values)
    return Row(inputs_embeds=embeds, settings=settings, stop_ids=STOP, cache=PrefixCache())


def run(model: VideoLlama, row: Row) -> list[int]:
    for _ in generate(model.language_model, [row]):
        pass
    return row.ids


def answer(model: VideoLlama, embeds: Tensor, **options: Any) -> list[int]:
    return run(model, row_of(embeds, **options))


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.0, "seed": 3}, {"repetition_penalty": 1.3}],
    ids=["greedy", "sampled", "penalty"],
)
def test_the_tokens_are_those_of_eager_decoding(model: VideoLlama, options: dict[str, Any]) -> None:
    context = prompt(model)
    assert answer(model, context, compiled=True, **options) == answer(model, context, **options)


def test_an_answer_may_be_longer_than_the_room(
    model: VideoLlama, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compiled_decoding, "LEAST_ROOM", 8)
    decoder = CompiledDecoder(model.language_model, backend="eager")
    monkeypatch.setitem(vars(model.language_model), compiled_decoding._ATTRIBUTE, decoder)
    for length in (5, 70, 12):
        context = prompt(model, length, seed=length)
        assert answer(model, context, compiled=True) == answer(model, context)
    assert decoder._room == 128


def test_a_conversation_goes_on_from_either(model: VideoLlama) -> None:
    first, second = prompt(model, 12), prompt(model, 9, seed=1)
    answers: dict[bool, list[list[int]]] = {}
    for compiled in (False, True):
        row = row_of(first, compiled=compiled, max_new_tokens=10, min_new_tokens=10)
        ids, cache = run(model, row), row.cache
        assert cache is not None
        assert len(cache.marks) == 12 + 9  # the last token has not been through the model
        words = model.embed(torch.tensor([ids[:9]]), None)[0]
        longer = row_of(torch.cat([first, words, second]))
        longer.cache, longer.marks = cache, [*row.marks, *ids[:9], *[7] * 9]
        assert cache.num_common(longer.marks) == 12 + 9
        answers[compiled] = [ids, run(model, longer)]
        assert answers[compiled][1] == answer(model, longer.inputs_embeds)
    assert answers[True] == answers[False]


def test_a_second_answer_at_the_same_time_is_decoded_eagerly(model: VideoLlama) -> None:
    prompts = [prompt(model, 10, seed=seed) for seed in (4, 5)]
    length = {"max_new_tokens": 12, "min_new_tokens": 12}
    rows = [row_of(embeds, compiled=True, **length) for embeds in prompts]
    both = [generate(model.language_model, [row]) for row in rows]
    for _ in zip(*both, strict=True):
        pass
    assert [row.ids for row in rows] == [answer(model, embeds, **length) for embeds in prompts]


def test_an_answer_that_is_stopped_leaves_the_decoder_free(model: VideoLlama) -> None:
    row = row_of(prompt(model), compiled=True)
    steps = generate(model.language_model, [row])
    begun = [next(steps).ids[-1] for _ in range(3)]
    steps.close()  # type: ignore[attr-defined]
    assert row.cache is not None
    assert len(row.cache.marks) == 20 + 2
    assert not decoder_of(model.language_model)._free.locked()
    assert begun == answer(model, row.inputs_embeds)[:3]


def test_what_cannot_be_compiled_is_decoded_eagerly_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(*_: Any) -> Any:
        raise ValueError("no kernel for this card")

    built = build_golden()
    decoder = CompiledDecoder(built.language_model, backend=broken)
    vars(built.language_model)[compiled_decoding._ATTRIBUTE] = decoder
    row = row_of(prompt(built), compiled=True)
    assert run(built, row) == answer(built, row.inputs_embeds, compiled=True)
    assert row.ids == answer(built, row.inputs_embeds, compiled=False)
    (record,) = [r for r in caplog.records if "without a compiled graph" in r.message]
    assert "no kernel for this card" in record.message
    assert row.cache is not None
    assert row.cache.states(built.language_model.config).get_seq_length() == 20 + 23


@pytest.mark.parametrize(("device", "wanted"), [("cuda", True), ("cpu", False)])
def test_it_is_the_default_on_a_gpu_only(
    device: str, wanted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []
    model = SimpleNamespace(device=torch.device(device))
    decoder = SimpleNamespace(steps=lambda *_: opened.append(True))
    monkeypatch.setattr(generating, "decoder_of", lambda _: decoder)
    rows = [SimpleNamespace(settings=GenerationSettings())]
    generating._compiled_steps(model, rows, PrefixCache())  # type: ignore[arg-type]
    assert bool(opened) is wanted


def test_without_a_compiler_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    model = build_golden()
    with pytest.raises(RequestError, match="needs a C\\+\\+ compiler on a CPU"):
        answer(model, prompt(model), compiled=True)


def test_the_switch_is_true_or_false() -> None:
    with pytest.raises(RequestError, match="compiled: 1 given"):
        GenerationSettings(compiled=1)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
def test_the_compiled_graph_says_the_same() -> None:
    built = build_golden()
    for length in (20, 33):
        context = prompt(built, length)
        assert answer(built, context, compiled=True) == answer(built, context)
    decoder = decoder_of(built.language_model)
    # Compiled once: the second answer has another length but the same shapes.
    assert decoder._room == compiled_decoding.LEAST_ROOM
