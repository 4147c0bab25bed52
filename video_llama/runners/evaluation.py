"""Loss and generated answers on a split, over all processes."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator

from video_llama.runners.distributed import World
from video_llama.runners.safeguards import BadItemList
from video_llama.runners.settings import RunSettings
from video_llama.runners.task import Answer, TextFromMedia
from video_llama.types import BadItem, Batch, ConfigError

logger = logging.getLogger(__name__)

RESULTS = "evaluation.jsonl"


class Evaluator:
    """Evaluates splits and writes results and answers to the run's folder.

    Args:
        task: what one step is.
        settings: `max_answers`, `answer_max_new_tokens` and `fsdp` are read.
        world: the processes, which share the batches among them.
        accelerator: for its precision.
        folder: of the run; answers go to `answers/`.
        bad_items: gets those whose media cannot be read; they count for nothing.
    """

    def __init__(
        self,
        task: TextFromMedia,
        *,
        settings: RunSettings,
        world: World,
        accelerator: Accelerator,
        folder: Path,
        bad_items: BadItemList,
    ) -> None:
        self._task = task
        self._settings = settings
        self._world = world
        self._accelerator = accelerator
        self._folder = folder
        self._bad_items = bad_items

    def evaluate(self, split: str, batches: Iterable[Batch], step: int) -> dict[str, Any]:
        """Loss and exact matches on a split.

        Args:
            split: its name.
            batches: those of this process.
            step: steps done, for the log.

        Returns:
            step, split, loss (mean over all labelled tokens of all processes), num_tokens,
            num_bad_items if there were any, and, but for run.fsdp, exact_match (part of the answers
            that agree with the reference) and num_answers.

        Raises:
            ConfigError: the split is empty.
        """
        model = self._task.model
        # A sharded model answers only in step with the others, whose answers have other lengths.
        most_answers = 0 if self._sharded else self._settings.max_answers
        was_training = model.training
        model.eval()
        total, num_tokens, answers, bad = 0.0, 0, list[Answer](), list[BadItem]()
        with torch.no_grad(), self._accelerator.autocast():
            for batch, counts in self._together(_noting(batches, bad), split):
                loss, tokens = self._task.eval_step(batch)
                if not counts:  # a repetition, or nothing but stand-ins
                    continue
                total, num_tokens = total + loss * tokens, num_tokens + tokens
                if len(answers) < most_answers:
                    answers += self._task.answers(batch, self._settings.answer_max_new_tokens)
        model.train(was_training)
        self._bad_items.add(bad)
        sums = {"loss": total, "tokens": num_tokens, "bad": len(bad)}
        return self._summed(split, step, sums, answers)

    @property
    def _sharded(self) -> bool:
        return self._settings.fsdp and self._world.size > 1

    def _together(self, batches: Iterator[Batch], split: str) -> Iterator[tuple[Batch, bool]]:
        """Batches, and whether they count.

        A sharded model needs all processes in every step: one that has run out of batches repeats
        its last one, which does not count.
        """
        if not self._sharded:
            yield from ((batch, bool(batch.item_ids)) for batch in batches)
            return
        last: Batch | None = None
        while True:
            batch = next(batches, None)
            last = batch or last
            sums = self._world.sum({"more": batch is not None, "idle": last is None})
            if not sums["more"]:
                return
            if sums["idle"] or last is None:
                raise ConfigError(
                    f"split {split}: it has fewer batches than there are processes, and run.fsdp "
                    "needs one for each; lower run.batch_size_eval"
                )
            yield last, batch is not None and bool(batch.item_ids)

    def _summed(
        self, split: str, step: int, figures: dict[str, float], answers: list[Answer]
    ) -> dict[str, Any]:
        right = sum(answer.is_right for answer in answers)
        sums = self._world.sum({**figures, "right": right, "answers": len(answers)})
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
                *(split, result["num_bad_items"], self._bad_items.path),
            )
        if sums["answers"]:
            result["exact_match"] = sums["right"] / sums["answers"]
            result["num_answers"] = round(sums["answers"])
            everything = [asdict(a) | {"is_right": a.is_right} for a in self._world.gather(answers)]
            path = self._folder / "answers" / f"{split}-step-{step:06d}.jsonl"
            self._world.on_main(lambda: _append(path, everything, mode="w"))
        self._world.on_main(lambda: _append(self._folder / RESULTS, [result], mode="a"))
        shown = ", ".join(f"{k} {v:.4g}" for k, v in result.items() if isinstance(v, float))
        logger.info("%s at step %d: %s", split, step, shown)
        return result


def _noting(batches: Iterable[Batch], bad: list[BadItem]) -> Iterator[Batch]:
    for batch in batches:
        bad += batch.bad_items
        yield batch


def _append(path: Path, lines: list[dict[str, Any]], *, mode: Literal["w", "a"]) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open(mode, encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
