"""What a run computes: the loss of a training step, and loss and answers on a split."""

from __future__ import annotations

import json
import logging
import unicodedata
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from video_llama.common.registry import Registry
from video_llama.runners.distributed import ProcessGroup
from video_llama.runners.folder import BadItemList
from video_llama.runners.settings import RunSettings
from video_llama.types import BadItem, Batch, ConfigError, ModelOutput

logger = logging.getLogger(__name__)

RESULTS = "evaluation.jsonl"


def normalised(text: str) -> str:
    """Return a text without case, punctuation and repeated white space."""
    kept = (" " if unicodedata.category(c)[0] in "PS" else c for c in text.casefold())
    return " ".join("".join(kept).split())


def is_exact_match(answer: str, reference: str) -> bool:
    """Compare two texts after `normalised`."""
    return normalised(answer) == normalised(reference)


@dataclass(frozen=True, kw_only=True)
class Answer:
    """A generated answer beside its reference."""

    item_id: str
    """Item of the data set."""
    reference: str
    """The caption, or the first answer of the conversation."""
    answer: str
    """The generated text."""

    @property
    def is_right(self) -> bool:
        """Whether the two agree but for case, punctuation and white space."""
        return is_exact_match(self.answer, self.reference)


AnswerBatch = Callable[[Batch, int], list[Answer]]
"""Generates greedy answers of a batch, one per item, of a largest number of tokens."""

TASKS: Registry[type[TextFromMedia]] = Registry("task")
"""`run.task` to the class."""


@TASKS.register("video_text_pretrain")
@TASKS.register("image_text_pretrain")
class TextFromMedia:
    """Training and evaluation steps of both branches and both stages."""

    def __init__(self, model: nn.Module, answer: AnswerBatch) -> None:
        self.model = model
        self._answer = answer

    def train_step(self, batch: Batch) -> Tensor:
        """Return the scalar loss of a batch: the mean over its labelled tokens."""
        output: ModelOutput = self.model(batch)
        return output.loss

    def eval_step(self, batch: Batch) -> tuple[float, int]:
        """Return the loss of a batch and the number of tokens that it is the mean of."""
        output: ModelOutput = self.model(batch)
        return float(output.loss), output.num_tokens

    def answers(self, batch: Batch, max_new_tokens: int) -> list[Answer]:
        """Generate greedy answers, one per item."""
        return self._answer(batch, max_new_tokens)


class TrainedPart(nn.Module):
    """The module that is wrapped for distributed training: the parameters that train, no others.

    Its forward runs the whole model, but DistributedDataParallel sees only the branch. The frozen
    parts are neither broadcast at the start nor searched in a step, so they may be quantised or
    sharded.
    """

    def __init__(self, task: TextFromMedia, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameters)
        self._step = task.train_step  # a bound method, not a sub-module

    def forward(self, batch: Batch) -> Tensor:
        """Compute the loss of a batch."""
        return self._step(batch)


@dataclass(frozen=True, kw_only=True)
class Evaluator:
    """Evaluates splits and writes results and answers to the run's folder."""

    task: TextFromMedia
    settings: RunSettings
    processes: ProcessGroup
    """They share the batches among them."""
    accelerator: Accelerator
    """For its precision."""
    folder: Path
    """Of the run; answers go to `answers/`."""
    bad_items: BadItemList
    """Gets the items whose media cannot be read; they count for nothing."""

    def evaluate(self, split: str, batches: Iterable[Batch], step: int) -> dict[str, Any]:
        """Measure loss and exact matches on a split.

        Returns:
            step, split, loss (mean over all labelled tokens of all processes), num_tokens,
            num_bad_items if there were any, and, but for run.fsdp, exact_match (part of the answers
            that agree with the reference) and num_answers.

        Raises:
            ConfigError: the split is empty.
        """
        model = self.task.model
        # A sharded model answers only in step with the others, whose answers have other lengths.
        most_answers = 0 if self._sharded else self.settings.max_answers
        # The training goes on afterwards, in the mode in which it was.
        was_training = model.training
        model.eval()
        total, num_tokens, answers, bad = 0.0, 0, list[Answer](), list[BadItem]()
        with torch.no_grad(), self.accelerator.autocast():
            for batch, counts in self._in_step(_collecting(batches, bad), split):
                loss, tokens = self.task.eval_step(batch)
                if not counts:  # a repetition, or nothing but stand-ins
                    continue
                # Batches differ in their numbers of tokens: the mean is taken over all tokens.
                total, num_tokens = total + loss * tokens, num_tokens + tokens
                if len(answers) < most_answers:
                    answers += self.task.answers(batch, self.settings.answer_max_new_tokens)
        model.train(was_training)
        self.bad_items.add(bad)
        return self._summarise(
            split, step, {"loss": total, "tokens": num_tokens, "bad": len(bad)}, answers
        )

    @property
    def _sharded(self) -> bool:
        return self.settings.fsdp and self.processes.size > 1

    def _in_step(self, batches: Iterator[Batch], split: str) -> Iterator[tuple[Batch, bool]]:
        """Yield batches, and whether they count.

        A sharded model needs all processes in every step. A process that has run out of batches
        repeats its last one, which does not count.
        """
        if not self._sharded:
            yield from ((batch, bool(batch.item_ids)) for batch in batches)
            return
        # Whether anybody has a batch left is agreed on before each step.
        last: Batch | None = None
        while True:
            batch = next(batches, None)
            last = batch or last
            sums = self.processes.sum({"more": batch is not None, "idle": last is None})
            if not sums["more"]:
                return
            if sums["idle"] or last is None:
                raise ConfigError(
                    f"split {split}: it has fewer batches than there are processes, and run.fsdp "
                    "needs one for each; lower run.batch_size_eval"
                )
            yield last, batch is not None and bool(batch.item_ids)

    def _summarise(
        self, split: str, step: int, figures: dict[str, float], answers: list[Answer]
    ) -> dict[str, Any]:
        """Add up the figures of all processes, write them down and log them."""
        # Sums, not means, go through the processes: their shares of the split differ in size.
        right = sum(answer.is_right for answer in answers)
        sums = self.processes.sum({**figures, "right": right, "answers": len(answers)})
        if not sums["tokens"]:
            raise ConfigError(f"split {split}: it has no items to evaluate")
        result: dict[str, Any] = {
            "step": step,
            "split": split,
            "loss": sums["loss"] / sums["tokens"],
            "num_tokens": round(sums["tokens"]),
        }
        if sums["bad"]:
            result["num_bad_items"] = round(sums["bad"])
            logger.info(
                "%s: %d items could not be read, which count for nothing; see %s",
                *(split, result["num_bad_items"], self.bad_items.path),
            )
        # The answers of all processes go into one file, in the order of the ranks.
        if sums["answers"]:
            result["exact_match"] = sums["right"] / sums["answers"]
            result["num_answers"] = round(sums["answers"])
            rows = [asdict(a) | {"is_right": a.is_right} for a in self.processes.gather(answers)]
            path = self.folder / "answers" / f"{split}-step-{step:06d}.jsonl"
            self.processes.on_main(lambda: _write_lines(path, rows, mode="w"))
        # Appended: the file holds the results of every evaluation of the run.
        path_of_results = self.folder / RESULTS
        self.processes.on_main(lambda: _write_lines(path_of_results, [result], mode="a"))
        summary = ", ".join(f"{k} {v:.4g}" for k, v in result.items() if isinstance(v, float))
        logger.info("%s at step %d: %s", split, step, summary)
        return result


def _collecting(batches: Iterable[Batch], bad: list[BadItem]) -> Iterator[Batch]:
    for batch in batches:
        bad += batch.bad_items
        yield batch


def _write_lines(path: Path, rows: list[dict[str, Any]], *, mode: Literal["w", "a"]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open(mode, encoding="utf-8") as file:
        file.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
