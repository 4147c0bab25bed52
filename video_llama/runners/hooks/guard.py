"""Ends a run whose loss is lost."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from video_llama.runners.errors import DivergedError
from video_llama.runners.hooks.base import Hook

if TYPE_CHECKING:
    from video_llama.runners.runner import Runner

logger = logging.getLogger(__name__)

MOST_ITEMS = 32
"""Items that a message names."""


class Guard(Hook):
    """Counts the updates that were skipped because loss or gradient was not finite.

    Args:
        most: skipped updates in a row that are allowed.
    """

    name = "guard"

    def __init__(self, most: int) -> None:
        self._most = most
        self.in_a_row = 0
        self.skipped = 0
        self._items: list[str] = []

    def after_step(self, runner: Runner) -> None:
        """Remember the items, in case this update goes wrong."""
        self._items += runner.batch.item_ids

    def after_update(self, runner: Runner) -> None:
        """Count, and stop the run if there were too many.

        Raises:
            DivergedError: in every process.
        """
        items, self._items = self._items, []
        if runner.healthy:
            self.in_a_row = 0
            return
        self.in_a_row += 1
        self.skipped += 1
        items = runner.world.gather(items)
        shown = ", ".join(items[:MOST_ITEMS]) + (", ..." if len(items) > MOST_ITEMS else "")
        if runner.world.is_main:
            logger.warning("step %d: loss or gradient not finite, skipped: %s", runner.step, shown)
        if self.in_a_row > self._most:
            raise DivergedError(
                f"loss or gradient not finite in {self.in_a_row} updates in a row "
                f"(run.max_nonfinite_steps {self._most}), the last at step {runner.step} with the "
                f"items {shown}; the weights before them are in the last checkpoint under "
                f"{runner.folder}. Look at these items, or lower run.init_lr or set run.grad_clip"
            )

    def state_dict(self) -> dict[str, Any]:
        """The counts."""
        return {"in_a_row": self.in_a_row, "skipped": self.skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.in_a_row, self.skipped = state["in_a_row"], state["skipped"]
