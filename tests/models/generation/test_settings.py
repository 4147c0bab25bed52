"""Options of an answer: what is out of range or unknown is named with what is expected."""

from __future__ import annotations

import pytest

from video_llama.models.generation.settings import GenerationSettings, generation_settings
from video_llama.types import RequestError


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_new_tokens", 0),
        ("max_new_tokens", 2.5),
        ("min_new_tokens", -1),
        ("temperature", -0.1),
        ("temperature", float("nan")),
        ("temperature", float("inf")),
        ("temperature", "hot"),
        ("top_p", 1.1),
        ("num_beams", 0),
        ("num_beams", True),
        ("repetition_penalty", 0),
        ("length_penalty", 1000),
        ("seed", -1),
        ("seed", 2**70),
    ],
)
def test_an_option_out_of_range_is_named_with_its_range(name: str, value: object) -> None:
    with pytest.raises(
        RequestError, match=rf"^{name}: .* given, a .*number from .* to .* expected"
    ):
        generation_settings({name: value})


def test_contradicting_lengths_are_refused() -> None:
    with pytest.raises(RequestError, match="min_new_tokens: 9 given, at most max_new_tokens"):
        generation_settings({"min_new_tokens": 9, "max_new_tokens": 8})


def test_an_unknown_option_is_named_with_the_valid_ones() -> None:
    with pytest.raises(RequestError, match=r"unknown option 'temprature'.*temperature"):
        generation_settings({"temprature": 1})


def test_options_become_typed_settings() -> None:
    settings = generation_settings({"temperature": 0, "seed": None, "compiled": True})
    assert settings == GenerationSettings(temperature=0, seed=None, compiled=True)
