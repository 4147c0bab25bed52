"""Answers to labelled batches: what the model says to the media that a batch would teach it."""

from __future__ import annotations

from typing import Any, NamedTuple

import video_llama.common.compat

import torch
from torch import Tensor

from video_llama.models.generation.generate import AnswerText, Row, generate
from video_llama.models.generation.settings import GenerationSettings
from video_llama.models.video_llama import VideoLlama
from video_llama.text.stream import AnswerStream
from video_llama.types import IGNORE_INDEX, Batch

ROLE = "Assistant:"
"""Ends what a Vicuna conversation has in front of an answer, with labels on it."""
LONGEST_ROLE = 12
"""Tokens that may take."""


class LabelledAnswer(NamedTuple):
    """A caption, or the first answer of a conversation, and what the model has said instead."""

    reference: str
    answer: str


def answer_batch(model: VideoLlama, batch: Batch, *, max_new_tokens: int) -> list[LabelledAnswer]:
    """Let a model in eval mode say, greedily, what a batch would teach it to say.

    Of conversations the first question is asked.

    Returns:
        One per item.
    """
    # The same way as a training step, so that the score is of what is trained.
    media = model.media_tokens(batch)
    input_ids, labels, _ = model.token_sequences(batch, media.shape[1])
    stop_texts = [text for text in (model.settings.end_sym, "###") if text]
    settings = GenerationSettings(max_new_tokens=max_new_tokens, temperature=0.0)
    rows, references = [], []
    # Training runs under autocast; answers are computed in the model's own precision, as in a chat.
    with torch.autocast(media.device.type, enabled=False):
        for ids, label, tokens in zip(input_ids.cpu(), labels.cpu(), media, strict=True):
            start, end = _target(model, ids, label)
            embeds = model.embed(ids[None, :start].to(media.device), tokens[None])[0]
            text = AnswerText(stop_texts, model.tokenizer)
            stop_ids = [[model.tokenizer.eos_token_id]]
            rows.append(Row(inputs_embeds=embeds, settings=settings, stop_ids=stop_ids, text=text))
            references.append(_decode(model.tokenizer, ids[start:end].tolist()))
        for _ in generate(model.language_model, rows):
            pass
    return [
        LabelledAnswer(_until(reference, stop_texts), _finished(row))
        for reference, row in zip(references, rows, strict=True)
    ]


def _target(model: VideoLlama, input_ids: Tensor, labels: Tensor) -> tuple[int, int]:
    """Find start and end of the first answer with labels behind the first media.

    Labels before the media are stop marks of Vicuna's format.
    """
    places = (input_ids == model.media_token_id).nonzero()
    # Stage 1 has no text before the media, stage 2 a question with a role name.
    first_media = int(places[0]) if len(places) else 0
    labelled = labels != IGNORE_INDEX
    # The first label behind the media begins the first answer.
    starts = labelled[first_media:].nonzero()
    start = first_media + int(starts[0]) if len(starts) else len(input_ids)
    gaps = (~labelled[start:]).nonzero()
    end = start + int(gaps[0]) if len(gaps) else len(input_ids)
    return start + _role_length(model.tokenizer, input_ids[start:end].tolist()), end


def _role_length(tokenizer: Any, ids: list[int]) -> int:
    for length in range(1, min(LONGEST_ROLE, len(ids)) + 1):
        if _decode(tokenizer, ids[:length]).rstrip().endswith(ROLE):
            return length
    return 0


def _decode(tokenizer: Any, ids: list[int]) -> str:
    text: str = tokenizer.decode(ids, skip_special_tokens=True)
    return text


def _until(text: str, stop_texts: list[str]) -> str:
    """Cut a reference as an answer is cut."""
    stream = AnswerStream(stop_texts)
    return (stream.push(text.strip()) + stream.finish()).strip()


def _finished(row: Row) -> str:
    assert row.text is not None
    row.text.finish()
    return row.text.text
