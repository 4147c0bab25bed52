"""Evaluates the valid splits after every epoch and the test splits after the run."""

from __future__ import annotations

from typing import TYPE_CHECKING

from video_llama.runners.hooks.base import Hook, crossed

if TYPE_CHECKING:
    from video_llama.runners.runner import Runner


class Evaluate(Hook):
    """Puts results into `runner.evaluations`, and the mean validation loss beside them."""

    def after_update(self, runner: Runner) -> None:
        """Evaluate at the end of an epoch and of the run."""
        settings = runner.settings
        last = runner.step == runner.num_steps
        if last or crossed(runner.previous_step, runner.step, settings.iters_per_epoch):
            valid = [runner.evaluate(split) for split in settings.valid_splits]
            runner.evaluations += valid
            if valid:
                runner.validation_loss = sum(result["loss"] for result in valid) / len(valid)
        if last:
            runner.evaluations += [runner.evaluate(split) for split in settings.test_splits]
