"""Counts, lists and limits the items whose media could not be read."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from video_llama.runners.errors import TooManyBadItemsError
from video_llama.runners.hooks.base import Hook
from video_llama.types import BadItem

if TYPE_CHECKING:
    from video_llama.runners.runner import Runner

logger = logging.getLogger(__name__)

FEWEST_ITEMS = 100
"""Items of a data set that must have been asked for before it can be judged."""


class BadItems(Hook):
    """Lists the unreadable items of training, and ends the run if there are too many.

    Args:
        names: of the data sets.
        max_fraction: largest part of a data set that may be unreadable.
    """

    name = "bad_items"

    def __init__(self, names: list[str], max_fraction: float) -> None:
        self._max_fraction = max_fraction
        self._new: list[BadItem] = []
        self._here = {name: [0, 0] for name in names}
        self.asked = dict.fromkeys(names, 0)
        self.bad = dict.fromkeys(names, 0)

    def after_step(self, runner: Runner) -> None:
        """Take note of the batch's items."""
        batch = runner.batch
        counts = self._here.setdefault(batch.data_set, [0, 0])
        counts[0] += len(batch.item_ids) + len(batch.bad_items)
        counts[1] += len(batch.bad_items)
        self._new += batch.bad_items

    def measure(self, runner: Runner) -> dict[str, float]:
        """Items asked for and bad ones, by data set."""
        figures = {}
        for name in self.asked:
            figures[f"asked/{name}"], figures[f"bad/{name}"] = map(float, self._here[name])
            self._here[name] = [0, 0]
        return figures

    def after_update(self, runner: Runner) -> None:
        """List new ones and judge the data sets.

        Raises:
            TooManyBadItemsError: in every process.
        """
        for name in self.asked:
            self.asked[name] += round(runner.sums[f"asked/{name}"])
            self.bad[name] += round(runner.sums[f"bad/{name}"])
        if any(runner.sums[f"bad/{name}"] for name in self.bad):
            items, self._new = self._new, []
            runner.bad_items.add(items)
        runner.figures["bad_items"] = float(len(runner.bad_items))
        for name, bad in self.bad.items():
            asked = self.asked[name]
            if asked >= FEWEST_ITEMS and bad > self._max_fraction * asked:
                raise TooManyBadItemsError(
                    f"data set {name}: {bad} of {asked} items that were asked for cannot be read "
                    f"({bad / asked:.1%}; run.max_bad_fraction is {self._max_fraction:.1%}). They "
                    f"are listed in {runner.bad_items.path}: mend or remove them (`video-llama "
                    "data check` finds all), or raise run.max_bad_fraction"
                )

    def finish(self, runner: Runner) -> None:
        """Say how many there were."""
        for name, bad in self.bad.items():
            if bad:
                logger.info(
                    "data set %s: %d of %d items that were asked for could not be read; see %s",
                    *(name, bad, self.asked[name], runner.bad_items.path),
                )

    def state_dict(self) -> dict[str, Any]:
        """The counts; what was listed is in the file."""
        return {"asked": dict(self.asked), "bad": dict(self.bad)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.asked.update(state["asked"])
        self.bad.update(state["bad"])
