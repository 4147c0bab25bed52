"""Answers to the items of a training or evaluation batch."""

from __future__ import annotations

from typing import Any, NamedTuple

import video_llama.common.compat

import torch
from torch import Tensor

from video_llama.models.generation.generate import GenerationSettings, generate
from video_llama.models.video_llama import VideoLlama
from video_llama.types import IGNORE_INDEX, Batch

ROLE = "Assistant:"
"""Ends what a Vicuna conversation has in front of an answer, with labels on it."""
LONGEST_ROLE = 12
"""Tokens that may take."""


class BatchAnswer(NamedTuple):
    """An answer and what it should have been."""

    reference: str
    """The caption, or the first answer of the conversation."""
    answer: str
    """What the model has said."""


def answer_batch(model: VideoLlama, batch: Batch, *, max_new_tokens: int) -> list[BatchAnswer]:
    """Let the model say, greedily, what a batch would teach it to say.

    Args:
        model: in eval mode.
        batch: captions or conversations; of these the first question is asked.
        max_new_tokens: longest answer.

    Returns:
        One per item.
    """
    media = model.media_tokens(batch)
    input_ids, labels, _ = model.token_sequences(batch, media.shape[1])
    return [
        _answer(model, *row, max_new_tokens)
        for row in zip(input_ids.cpu(), labels.cpu(), media, strict=True)
    ]


def _answer(
    model: VideoLlama, input_ids: Tensor, labels: Tensor, media: Tensor, max_new_tokens: int
) -> BatchAnswer:
    start, end = _target(input_ids, labels, model.media_token_id)
    start += _role_length(model.tokenizer, input_ids[start:end].tolist())
    stops = [model.settings.end_sym, "###"]
    text = ""
    with torch.autocast(media.device.type, enabled=False):
        prompt = model.embed(input_ids[None, :start].to(media.device), media[None])
        greedy = GenerationSettings(max_new_tokens=max_new_tokens, temperature=0.0)
        ids: list[int] = []
        for token in generate(model.language_model, prompt, greedy, [[_end_id(model)]]):
            ids.append(token)
            text = _decode(model.tokenizer, ids)
            if any(stop in text for stop in stops):
                break
    reference = _decode(model.tokenizer, input_ids[start:end].tolist())
    return BatchAnswer(*(_until(t, stops) for t in (reference, text)))


def _target(input_ids: Tensor, labels: Tensor, media_token_id: int) -> tuple[int, int]:
    """Start and end of the first text with labels behind the first media.

    Labels before the media are stop marks of Vicuna's format.
    """
    places = (input_ids == media_token_id).nonzero()
    first_media = int(places[0]) if len(places) else 0
    labelled = labels != IGNORE_INDEX
    starts = labelled[first_media:].nonzero()
    start = first_media + int(starts[0]) if len(starts) else len(input_ids)
    gaps = (~labelled[start:]).nonzero()
    return start, start + int(gaps[0]) if len(gaps) else len(input_ids)


def _role_length(tokenizer: Any, ids: list[int]) -> int:
    for length in range(1, min(LONGEST_ROLE, len(ids)) + 1):
        if _decode(tokenizer, ids[:length]).rstrip().endswith(ROLE):
            return length
    return 0


def _decode(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text


def _end_id(model: VideoLlama) -> int:
    token_id: int = model.tokenizer.eos_token_id
    return token_id


def _until(text: str, stops: list[str]) -> str:
    text = text.strip()
    for stop in stops:
        text = text.partition(stop)[0]
    return text.strip()
