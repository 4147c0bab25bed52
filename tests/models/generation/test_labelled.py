"""Answers to labelled batches: which question is asked, and where an answer ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.golden_model import build_golden
from video_llama.models.generation import labelled as answering
from video_llama.models.generation.generate import Row
from video_llama.models.generation.labelled import answer_batch
from video_llama.models.video_llama import VideoLlama
from video_llama.text.templates import TEMPLATES
from video_llama.types import IMAGE_PLACEHOLDER, Batch, CaptionBatch, InstructionBatch

PIXELS = torch.zeros(1, 3, 2, 56, 56)


def conversation(model: VideoLlama, template: str, *turns: tuple[str, str]) -> InstructionBatch:
    encoded = TEMPLATES.get(template).encode(list(turns), model.tokenizer, max_length=512)
    ids = torch.tensor([encoded.input_ids])
    return InstructionBatch(
        pixel_values=PIXELS,
        input_ids=ids,
        labels=torch.tensor([encoded.labels]),
        attention_mask=torch.ones_like(ids, dtype=torch.bool),
    )


class Echo:
    """Generates the text that a perfect model would, and more; remembers its prompt."""

    def __init__(self, model: VideoLlama, text: str) -> None:
        self._ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
        self.prompt_length = 0

    def __call__(self, model: Any, rows: list[Row]) -> Iterator[Row]:
        for row in rows:
            self.prompt_length = len(row.inputs_embeds)
            for token in self._ids:
                if not row.ended:
                    row.take(token)
                    yield row


def prompt_text(model: VideoLlama, batch: Batch, length: int) -> str:
    ids, _, _ = model.token_sequences(batch, 6)
    text: str = model.tokenizer.decode(ids[0, :length])
    return text


@pytest.mark.parametrize(
    ("template", "ends", "more"),
    [("vicuna", "Assistant:", "\n###Human:"), ("llama_v2", "[/INST]", "")],
)
def test_first_question_of_a_conversation_is_asked(
    template: str, ends: str, more: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = build_golden(end_sym="")
    question = f"<Video>{IMAGE_PLACEHOLDER * 6}</Video> what is it?"
    batch = conversation(model, template, (question, "A cat."), ("Sure?", "Yes"))
    echo = Echo(model, " A cat." + more)
    monkeypatch.setattr(answering, "generate", echo)
    (found,) = answer_batch(model, batch, max_new_tokens=20)
    assert found == ("A cat.", "A cat.")
    assert prompt_text(model, batch, echo.prompt_length).rstrip().endswith(ends)


@pytest.mark.parametrize("prompt", [None, f"Look at {IMAGE_PLACEHOLDER} and speak: "])
def test_caption_is_asked_for(prompt: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    model = build_golden(end_sym="###")
    batch = CaptionBatch(pixel_values=PIXELS, captions=["a red dog"], prompt=prompt)
    echo = Echo(model, "a blue dog### and more")
    monkeypatch.setattr(answering, "generate", echo)
    (found,) = answer_batch(model, batch, max_new_tokens=20)
    assert found == ("a red dog", "a blue dog")
    text = prompt_text(model, batch, echo.prompt_length).rstrip()
    assert text.endswith(IMAGE_PLACEHOLDER if prompt is None else "speak:")


def test_answers_are_greedy_and_repeat() -> None:
    model = build_golden()
    batch = CaptionBatch(pixel_values=PIXELS, captions=["a dog"])
    first, second = (answer_batch(model, batch, max_new_tokens=6) for _ in range(2))
    assert first == second
    assert first[0].reference == "a dog"


def test_a_batch_is_answered_as_its_items_alone() -> None:
    model = build_golden()
    pixels = torch.rand(3, 3, 2, 56, 56, generator=torch.Generator().manual_seed(0))
    captions = ["a dog", "a cat on a mat", ""]
    prompt = f"Look at {IMAGE_PLACEHOLDER} and speak: "
    batch = CaptionBatch(pixel_values=pixels, captions=captions, prompt=prompt)
    alone = [
        answer_batch(
            model,
            CaptionBatch(pixel_values=p[None], captions=[c], prompt=prompt),
            max_new_tokens=8,
        )[0]
        for p, c in zip(pixels, captions, strict=True)
    ]
    assert answer_batch(model, batch, max_new_tokens=8) == alone
