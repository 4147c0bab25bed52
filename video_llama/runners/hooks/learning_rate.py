"""Sets the learning rate of every step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from video_llama.runners.hooks.base import Hook
from video_llama.runners.schedules import learning_rate

if TYPE_CHECKING:
    from video_llama.runners.runner import Runner


class LearningRate(Hook):
    """Gives all groups of the optimiser the rate of the schedule."""

    def before_step(self, runner: Runner) -> None:
        """Set the rate, a function of the steps done."""
        runner.learning_rate = learning_rate(runner.step, runner.settings)
        for group in runner.optimizer.param_groups:
            group["lr"] = runner.learning_rate
