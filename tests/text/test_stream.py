"""A streamed answer shows no part of a stop mark and ends up as the cleaned answer."""

from __future__ import annotations

import random

import pytest

from video_llama.text.stream import AnswerStream
from video_llama.text.templates import LLAMA_V2, TEMPLATES, VICUNA


def test_joined_pieces_equal_the_cleaned_answer() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        template = TEMPLATES.get(rng.choice(list(TEMPLATES)))
        text = "".join(rng.choices([" ", "\n", "#", "##", "a", "bell", "</s", "</s>", "<"], k=9))
        stream = AnswerStream(template.stop_texts)
        shown = []
        rest = text
        while rest:
            size = rng.randint(1, 4)
            shown.append(stream.push(rest[:size]))
            rest = rest[size:]
        assert "".join([*shown, stream.finish()]) == template.clean_answer(text), text


@pytest.mark.parametrize("stop_texts", [VICUNA.stop_texts, LLAMA_V2.stop_texts])
def test_words_are_shown_at_once(stop_texts: tuple[str, ...]) -> None:
    stream = AnswerStream(stop_texts)
    assert [stream.push(text) for text in (" A", " red", " ", "bell", ".\n")] == [
        "A",
        " red",
        "",
        " bell",
        ".",
    ]


def test_nothing_is_shown_after_a_stop() -> None:
    stream = AnswerStream(VICUNA.stop_texts)
    assert [stream.push(text) for text in ("Yes.\n##", "#Human", ": x")] == ["Yes.", "", ""]
    assert stream.stopped
    assert stream.finish() == ""
