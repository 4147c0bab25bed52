"""Writes log.jsonl."""

from __future__ import annotations

import json
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from video_llama.files import atomic_write
from video_llama.runners.hooks.base import Hook, crossed

if TYPE_CHECKING:
    from video_llama.runners.runner import Runner

LOG = "log.jsonl"


class JsonLog(Hook):
    """Appends lines to log.jsonl, with numbers as exact as they are.

    A resumed run drops the lines after its checkpoint, so that the log reads as that of one run.
    Only the main process writes.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def start(self, runner: Runner) -> None:
        """Open the log."""
        if not runner.world.is_main:
            return
        path = runner.folder / LOG
        if path.exists():
            _drop_after(path, runner.step)
        self._file = path.open("a", encoding="utf-8")

    def after_update(self, runner: Runner) -> None:
        """Write a line where one is due."""
        if self._file is None:
            return
        for line in [*due_lines(runner), *runner.evaluations]:
            self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def is_due(runner: Runner) -> bool:
    """Whether figures are to be shown and logged at this update."""
    every = runner.settings.log_every
    return crossed(runner.previous_step, runner.step, every) or runner.step == runner.num_steps


def due_lines(runner: Runner) -> list[dict[str, Any]]:
    """The figures of this update where they are due, otherwise nothing."""
    if not is_due(runner):
        return []
    return [
        {
            "step": runner.step,
            "loss": runner.loss,
            "lr": runner.learning_rate,
            "grad_norm": runner.grad_norm,
            **runner.figures,
        }
    ]


def _drop_after(path: Path, step: int) -> None:
    """Drop the lines after a step, and one that a crash has left unfinished."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] > step:
                continue
        except (ValueError, LookupError, TypeError):
            continue
        kept.append(line + "\n")
    with atomic_write(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")
