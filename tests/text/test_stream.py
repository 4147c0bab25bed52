"""Streamed ids give the decoded text, and a streamed answer shows no part of a stop mark."""

from __future__ import annotations

import random

import pytest
from transformers import LlamaTokenizer

from tests.text.tokenizers import SHIPPED, random_texts
from video_llama.text.stream import AnswerStream, StreamDecoder
from video_llama.text.templates import LLAMA_V2, TEMPLATES, VICUNA
from video_llama.text.tokenizer import encode_text, load_tokenizer


def stream(tokenizer: LlamaTokenizer, ids: list[int]) -> list[str]:
    decoder = StreamDecoder(tokenizer)
    return [*(decoder.push(token_id) for token_id in ids), decoder.finish()]


def test_streamed_text_equals_the_decoded_text(tokenizer: LlamaTokenizer) -> None:
    for text in random_texts(10):
        ids = encode_text(tokenizer, text, parse_special=True)
        assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_streamed_text_of_any_ids_equals_the_decoded_text(tokenizer: LlamaTokenizer) -> None:
    rng = random.Random(3)
    for _ in range(500):
        ids = rng.choices(range(rng.choice([260, len(tokenizer) + 3])), k=rng.randint(0, 30))
        assert "".join(stream(tokenizer, ids)) == tokenizer.decode(ids, skip_special_tokens=True)


def test_stream_gives_words_at_once_and_never_half_a_character(tokenizer: LlamaTokenizer) -> None:
    ids = encode_text(tokenizer, "a bell 🔔🥁, a drum", parse_special=False)
    texts = stream(tokenizer, ids)
    assert "\ufffd" not in "".join(texts)
    # Only an id that is a byte piece may leave the reader waiting.
    assert [id_ for id_, text in zip(ids, texts, strict=False) if not text and id_ >= 259] == []


def test_decoder_serves_one_sequence_after_another() -> None:
    tokenizer = load_tokenizer(SHIPPED)
    decoder = StreamDecoder(tokenizer)
    for text in ("a bell\n", " two  spaces", "铃"):
        ids = encode_text(tokenizer, text, parse_special=False)
        assert "".join(map(decoder.push, ids)) + decoder.finish() == text


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
