"""Captions are cleaned as the released weights' training captions were."""

from __future__ import annotations

import json

import pytest

from tests.reference import GOLDEN
from video_llama.processors.settings import CaptionSettings

CAPTIONS: dict[str, str] = json.loads((GOLDEN / "processors.json").read_text())["captions"]


@pytest.mark.parametrize("caption", CAPTIONS)
def test_captions_equal_the_originals(caption: str) -> None:
    assert CaptionSettings().build()(caption) == CAPTIONS[caption]


def test_every_listed_mark_becomes_a_space_and_others_stay() -> None:
    clean = CaptionSettings().build()
    assert clean('a.b!c"d(e)f*g#h:i;j~k') == "a b c d e f g h i j k"
    assert clean("it's - a, b? <x>") == "it's - a, b? <x>"


def test_the_prompt_comes_first_and_is_no_word_of_the_caption() -> None:
    clean = CaptionSettings(prompt="a video of ", max_words=2).build()
    assert clean("One Two Three") == "a video of one two"


def test_nothing_is_left_of_marks_alone() -> None:
    assert CaptionSettings().build()(" .!~ \n") == ""
