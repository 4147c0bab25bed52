"""Whether a generated answer is the expected one.

The task of all training: to predict the text that belongs to the media.
"""

from __future__ import annotations

import unicodedata
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor, nn

from video_llama.common.registry import Registry
from video_llama.types import Batch, ModelOutput


def normalised(text: str) -> str:
    """The text without what two right answers may differ in: case, punctuation and white space."""
    kept = (" " if unicodedata.category(c)[0] in "PS" else c for c in text.casefold())
    return " ".join("".join(kept).split())


def is_exact_match(answer: str, reference: str) -> bool:
    """Whether two texts are the same after `normalised`."""
    return normalised(answer) == normalised(reference)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a model says about an item, beside what it should say."""

    item_id: str
    """Which item."""
    reference: str
    """The caption, or the first answer of the conversation."""
    answer: str
    """The generated text."""

    @property
    def is_right(self) -> bool:
        """Whether the two agree but for case, punctuation and white space."""
        return is_exact_match(self.answer, self.reference)


class AnswerBatch(Protocol):
    """Generates the answers of a batch."""

    def __call__(self, batch: Batch, max_new_tokens: int) -> list[Answer]:
        """Greedy answers, one per item."""


TASKS: Registry[type[TextFromMedia]] = Registry("task")
"""`run.task` to the class."""


@TASKS.register("video_text_pretrain")
@TASKS.register("image_text_pretrain")
class TextFromMedia:
    """Training and evaluation steps of both branches and both stages.

    Args:
        model: its forward gives a `ModelOutput` for a batch.
        answer: generates answers with it.
    """

    def __init__(self, model: nn.Module, answer: AnswerBatch) -> None:
        self.model = model
        self._answer = answer

    def train_step(self, batch: Batch) -> Tensor:
        """The scalar loss of a batch: the mean over its labelled tokens."""
        output: ModelOutput = self.model(batch)
        return output.loss

    def eval_step(self, batch: Batch) -> tuple[float, int]:
        """The loss of a batch and the number of tokens that it is the mean of."""
        output: ModelOutput = self.model(batch)
        return float(output.loss), output.num_tokens

    def answers(self, batch: Batch, max_new_tokens: int) -> list[Answer]:
        """Greedy answers of a batch, one per item."""
        return self._answer(batch, max_new_tokens)
