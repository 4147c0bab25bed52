"""Build the token sequences of caption data: media, prompt, caption and end symbol, with labels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from video_llama.text.tokenizer import encode_text
from video_llama.types import IGNORE_INDEX, IMAGE_PLACEHOLDER


def caption_inputs(
    tokenizer: Any,
    captions: list[str],
    *,
    prompt: str | None,
    num_media_tokens: int,
    end_sym: str,
    max_txt_len: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return token ids of `BOS [before] media [after] caption end`, one row per caption.

    Args:
        tokenizer: of the language model, with `<ImageHere>` added.
        captions: B texts; never parsed for special tokens.
        prompt: text with exactly one `<ImageHere>`, or None for media directly after BOS.
        num_media_tokens: positions that the media take.
        end_sym: what ends every caption, also a truncated one.
        max_txt_len: longest caption, in tokens, its end included.

    Returns:
        input_ids, labels (both (B, L) int64, right-padded) and attention_mask (B, L) bool. Only the
        captions and their ends have labels.

    Raises:
        ValueError: the prompt does not have exactly one `<ImageHere>`.
    """
    # Every row begins in the same way, and nothing of that beginning has a label.
    before, after = _split_prompt(prompt)
    media = [tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)] * num_media_tokens
    wrapped = [
        tokenizer.bos_token_id,
        *(encode_text(tokenizer, before, parse_special=True) if before else ()),
        *media,
        *(encode_text(tokenizer, after, parse_special=True) if after else ()),
    ]
    ids, labels = [], []
    for caption in captions:
        text = _caption_ids(tokenizer, caption, end_sym, max_txt_len)
        ids.append(torch.tensor(wrapped + text))
        labels.append(torch.tensor([IGNORE_INDEX] * len(wrapped) + text))
    # The labels tell padding from text: 0 is also the id of <unk>, which a caption may hold.
    padded = pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX)
    lengths = torch.tensor([len(row) for row in ids])
    mask = torch.arange(padded.shape[1]) < lengths[:, None]
    return pad_sequence(ids, batch_first=True), padded, mask


def _split_prompt(prompt: str | None) -> tuple[str, str]:
    if prompt is None:
        return "", ""
    halves = prompt.split(IMAGE_PLACEHOLDER)
    if len(halves) != 2:
        raise ValueError(
            f"a caption prompt needs exactly one {IMAGE_PLACEHOLDER}, "
            f"{len(halves) - 1} found in {prompt!r}"
        )
    return halves[0], halves[1]


def _caption_ids(tokenizer: Any, caption: str, end_sym: str, max_txt_len: int) -> list[int]:
    # A caption is text of others: only the end symbol may become a special token.
    if end_sym in tokenizer.all_special_tokens:
        end = [tokenizer.convert_tokens_to_ids(end_sym)]
        ids = encode_text(tokenizer, caption, parse_special=False) + end
    else:
        ids = encode_text(tokenizer, caption + end_sym, parse_special=False)
        # The ids that the end symbol has within a text; alone it may be another piece.
        letter = encode_text(tokenizer, "a", parse_special=False)
        end = encode_text(tokenizer, "a" + end_sym, parse_special=False)[len(letter) :]
    # A caption that was cut still ends: a model trained without would not learn to stop.
    if len(ids) > max_txt_len:
        ids = ids[: max(0, max_txt_len - len(end))] + end
    return ids
