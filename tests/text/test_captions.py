"""Captions as token sequences."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden_model import TOKENIZER
from video_llama.text.captions import caption_inputs
from video_llama.text.tokenizer import encode_text, load_tokenizer
from video_llama.types import IGNORE_INDEX

END_SYMBOLS = ["###", "\n", "</s>"]
LONG = "a brown dog rides a skateboard down the hill and falls over"


@cache
def tokenizer() -> Any:
    return load_tokenizer(TOKENIZER.parent)


def inputs(
    *captions: str, prompt: str | None = None, end_sym: str = "###", max_txt_len: int = 32
) -> tuple[Tensor, Tensor, Tensor]:
    return caption_inputs(
        tokenizer(),
        [*captions],
        prompt=prompt,
        num_media_tokens=4,
        end_sym=end_sym,
        max_txt_len=max_txt_len,
    )


def labelled(labels: Tensor) -> list[int]:
    return [int(label) for label in labels[labels != IGNORE_INDEX]]


def text_of(ids: list[int]) -> str:
    text: str = tokenizer().decode(ids)
    return text


@pytest.mark.parametrize("end_sym", END_SYMBOLS)
def test_a_caption_is_labelled_with_its_end_symbol(end_sym: str) -> None:
    _, labels, _ = inputs("the car is red", end_sym=end_sym)
    assert text_of(labelled(labels[0])) == f"the car is red{end_sym}"


@pytest.mark.parametrize("end_sym", END_SYMBOLS)
@pytest.mark.parametrize("max_txt_len", [5, 6, 7, 8, 12])
def test_a_truncated_caption_keeps_its_end_symbol(end_sym: str, max_txt_len: int) -> None:
    _, whole, _ = inputs(LONG, end_sym=end_sym, max_txt_len=500)
    _, cut, _ = inputs(LONG, end_sym=end_sym, max_txt_len=max_txt_len)
    ids, all_ids = labelled(cut[0]), labelled(whole[0])
    assert len(ids) == max_txt_len < len(all_ids)
    assert text_of(ids).endswith(end_sym)
    num_end = len(ids) - len(_common_start(ids, all_ids))
    assert ids[-num_end:] == all_ids[-num_end:]


def _common_start(ids: list[int], others: list[int]) -> list[int]:
    pairs = zip(ids, others, strict=False)
    end = next((i for i, (a, b) in enumerate(pairs) if a != b), len(ids))
    return ids[:end]


@pytest.mark.parametrize("end_sym", END_SYMBOLS)
def test_no_room_for_a_word_leaves_the_end_symbol_alone(end_sym: str) -> None:
    _, labels, _ = inputs(LONG, end_sym=end_sym, max_txt_len=1)
    assert text_of(labelled(labels[0])) == end_sym


@pytest.mark.parametrize("mark", ["</s>", "<s>", "<unk>", "<ImageHere>"])
@pytest.mark.parametrize("end_sym", END_SYMBOLS)
def test_special_marks_in_a_caption_stay_text(mark: str, end_sym: str) -> None:
    ids, labels, _ = inputs(f"see {mark} here", end_sym=end_sym, max_txt_len=80)
    caption = labelled(labels[0])
    specials = {*tokenizer().all_special_ids}
    end = 1 if end_sym == "</s>" else 0
    assert specials.isdisjoint(caption[: len(caption) - end])
    assert text_of(caption) == f"see {mark} here{end_sym}"
    assert int((ids == tokenizer().image_token_id).sum()) == 4


def test_without_a_prompt_the_media_follow_bos() -> None:
    ids, labels, _ = inputs("the car is red")
    media = tokenizer().image_token_id
    assert ids[0, :5].tolist() == [tokenizer().bos_token_id, *[media] * 4]
    assert labels[0, :5].tolist() == [IGNORE_INDEX] * 5
    assert labels[0, 5:].tolist() == ids[0, 5:].tolist()


def test_a_prompt_surrounds_the_media_and_is_not_labelled() -> None:
    prompt = "###Human: <Image><ImageHere></Image> Describe it. ###Assistant: "
    before, after = (
        encode_text(tokenizer(), half, parse_special=True) for half in prompt.split("<ImageHere>")
    )
    ids, labels, _ = inputs("the car is red", prompt=prompt)
    media = [tokenizer().image_token_id] * 4
    start = [tokenizer().bos_token_id, *before, *media, *after]
    assert ids[0, : len(start)].tolist() == start
    assert text_of(labelled(labels[0])) == "the car is red###"


@pytest.mark.parametrize(
    ("prompt", "found"), [("no place", 0), ("<ImageHere> and <ImageHere>", 2), ("", 0)]
)
def test_a_prompt_needs_one_place(prompt: str, found: int) -> None:
    with pytest.raises(ValueError, match=f"exactly one <ImageHere>, {found} found in '{prompt}'"):
        inputs("the car", prompt=prompt)


def test_padding_is_told_by_the_mask() -> None:
    ids, labels, mask = inputs("the car is red", LONG)
    lengths = [5 + len(labelled(row)) for row in labels]
    assert mask.sum(dim=1).tolist() == lengths
    assert lengths[0] < lengths[1] == ids.shape[1]
    assert mask.dtype is torch.bool
    assert labels[0, lengths[0] :].tolist() == [IGNORE_INDEX] * (lengths[1] - lengths[0])
