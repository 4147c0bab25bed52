"""Shows how the run is getting on."""

from __future__ import annotations

import datetime
import logging
import sys
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from video_llama.runners.hooks.base import Hook
from video_llama.runners.hooks.log import is_due

if TYPE_CHECKING:
    from video_llama.runners.runner import Runner

logger = logging.getLogger(__name__)


class Progress(Hook):
    """A bar on a terminal, plain lines elsewhere; the main process only."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._losses: list[float] = []

    def start(self, runner: Runner) -> None:
        """Draw the bar."""
        if runner.world.is_main and sys.stderr.isatty():
            self._bar = tqdm(total=runner.num_steps, initial=runner.step, unit="step")

    def after_update(self, runner: Runner) -> None:
        """Renew the bar, or write a line where one is due."""
        self._losses.append(runner.loss)
        if self._bar is not None:
            self._bar.set_postfix_str(_summary(runner, self._losses[-10:]), refresh=False)
            self._bar.update(runner.step - runner.previous_step)
        if is_due(runner):
            if self._bar is None and runner.world.is_main:
                summary = _summary(runner, self._losses)
                logger.info("step %d/%d: %s", runner.step, runner.num_steps, summary)
            self._losses = self._losses[-10:] if self._bar is not None else []

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.close()


def _summary(runner: Runner, losses: list[float]) -> str:
    figures = runner.figures
    left = datetime.timedelta(seconds=round(figures["eta_s"]))
    text = (
        f"loss {sum(losses) / len(losses):.4f}, lr {runner.learning_rate:.3g}, "
        f"{figures['samples_per_s']:.1f} samples/s, waiting for data {figures['data_wait']:.0%}, "
        f"{figures['memory_gb']:.1f} GB, {left} left"
    )
    bad = round(figures.get("bad_items", 0))
    return f"{text}, {bad} bad items" if bad else text
