"""Passes figures to TensorBoard."""

from __future__ import annotations

from typing import TYPE_CHECKING

from video_llama.runners.hooks.base import Hook
from video_llama.runners.hooks.log import due_lines

if TYPE_CHECKING:
    from video_llama.runners.runner import Runner


class Tracker(Hook):
    """Passes the figures to accelerate's trackers (TensorBoard)."""

    def start(self, runner: Runner) -> None:
        """Open the tracker; what it had after the checkpoint is purged."""
        options = {"tensorboard": {"purge_step": runner.step + 1}} if runner.step else {}
        runner.accelerator.init_trackers("tensorboard", init_kwargs=options)

    def after_update(self, runner: Runner) -> None:
        """Log where it is due."""
        for line in due_lines(runner):
            values = {f"train/{key}": value for key, value in line.items() if key != "step"}
            runner.accelerator.log(values, step=runner.step)
        for line in runner.evaluations:
            split = line["split"]
            values = {f"{split}/{k}": v for k, v in line.items() if isinstance(v, float)}
            runner.accelerator.log(values, step=runner.step)

    def finish(self, runner: Runner) -> None:
        """Close the tracker, and leave the processes connected, unlike `end_training`."""
        for tracker in runner.accelerator.trackers:
            tracker.finish()
