"""Compiled decoding says what eager decoding says, and leaves the same cache behind."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tests.golden_model import build_golden
from video_llama.models.generation import compiled as compiled_decoding
from video_llama.models.generation.compiled import CompiledDecoder, decoder_of
from video_llama.models.generation.decoding import Context
from video_llama.models.generation.generate import GenerationSettings, generate
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
    return model.embed(ids, None).detach()


def answer(model: VideoLlama, context: Tensor | Context, **options: object) -> list[int]:
    values = {"temperature": 0.0, "max_new_tokens": 24, "min_new_tokens": 24, **options}
    return list(generate(model.language_model, context, GenerationSettings(**values), STOP))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "options",
    [{}, {"temperature": 1.0, "seed": 3}, {"repetition_penalty": 1.3}],
    ids=["greedy", "sampled", "penalty"],
)
def test_the_tokens_are_those_of_eager_decoding(
    model: VideoLlama, options: dict[str, object]
) -> None:
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
    said: dict[bool, list[list[int]]] = {}
    for compiled in (False, True):
        context = Context.fresh(first)
        ids = answer(model, context, compiled=compiled, max_new_tokens=10, min_new_tokens=10)
        known = len(context.cache.marks)
        assert known == 12 + 9  # the last token has not been through the model
        words = model.embed(torch.tensor([ids[:9]]), None)
        whole = torch.cat([first, words, second], dim=1)
        marks = [*context.marks, *ids[:9], *[7] * 9]
        longer = Context(inputs_embeds=whole, marks=marks, cache=context.cache)
        assert context.cache.num_common(marks) == known
        said[compiled] = [ids, answer(model, longer)]
        assert said[compiled][1] == answer(model, whole)
    assert said[True] == said[False]


def test_a_second_answer_at_the_same_time_is_decoded_eagerly(model: VideoLlama) -> None:
    contexts = [prompt(model, 10, seed=seed) for seed in (4, 5)]
    settings = GenerationSettings(
        temperature=0.0, max_new_tokens=12, min_new_tokens=12, compiled=True
    )
    both: list[Iterator[int]] = [
        generate(model.language_model, context, settings, STOP) for context in contexts
    ]
    said = [list(pair) for pair in zip(*both, strict=True)]
    eager = [answer(model, c, max_new_tokens=12, min_new_tokens=12) for c in contexts]
    assert [list(ids) for ids in zip(*said, strict=True)] == eager


def test_an_answer_that_is_stopped_leaves_the_decoder_free(model: VideoLlama) -> None:
    context = Context.fresh(prompt(model))
    settings = GenerationSettings(temperature=0.0, max_new_tokens=20, compiled=True)
    ids = generate(model.language_model, context, settings, STOP)
    begun = [next(ids), next(ids), next(ids)]
    ids.close()  # type: ignore[attr-defined]
    assert len(context.cache.marks) == 20 + 2
    decoder = decoder_of(model.language_model)
    assert not decoder._free.locked()
    assert begun == answer(model, context.inputs_embeds)[:3]


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
