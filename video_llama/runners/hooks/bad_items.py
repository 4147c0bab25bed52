"""Counts, lists and limits the items whose media could not be read."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_llama.runners.errors import TooManyBadItemsError
from video_llama.runners.hooks.base import Hook
from video_llama.types import BadItem

if TYPE_CHECKING:
    from video_llama.runners.runner import Runner

BAD_ITEMS = "bad_items.jsonl"
FEWEST_ITEMS = 100
"""Items of a data set that must have been asked for before it can be judged."""


class BadItems(Hook):
    """Lists each unreadable item once in bad_items.jsonl, and ends the run if there are too many.

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
        self._listed: set[tuple[str, str]] = set()

    def start(self, runner: Runner) -> None:
        """Read what an interrupted run has listed."""
        path = runner.folder / BAD_ITEMS
        if path.exists():
            lines = path.read_text(encoding="utf-8").splitlines()
            self._listed = {(item["data_set"], item["item_id"]) for item in map(json.loads, lines)}

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
        runner.figures["bad_items"] = float(len(self._listed))
        if any(runner.sums[f"bad/{name}"] for name in self.bad):
            self._list(runner)
        for name, bad in self.bad.items():
            asked = self.asked[name]
            if asked >= FEWEST_ITEMS and bad > self._max_fraction * asked:
                raise TooManyBadItemsError(
                    f"data set {name}: {bad} of {asked} items that were asked for cannot be read "
                    f"({bad / asked:.1%}; run.max_bad_fraction is {self._max_fraction:.1%}). They "
                    f"are listed in {runner.folder / BAD_ITEMS}: mend or remove them (`video-llama "
                    "data check` finds all), or raise run.max_bad_fraction"
                )

    def _list(self, runner: Runner) -> None:
        items, self._new = runner.world.gather(self._new), []
        lines = []
        for item in items:
            if (key := (item.data_set, item.item_id)) not in self._listed:
                self._listed.add(key)
                lines.append(json.dumps(asdict(item), ensure_ascii=False) + "\n")
        runner.figures["bad_items"] = float(len(self._listed))
        if lines and runner.world.is_main:
            _append(runner.folder / BAD_ITEMS, lines)

    def state_dict(self) -> dict[str, Any]:
        """The counts; what was listed is in the file."""
        return {"asked": dict(self.asked), "bad": dict(self.bad)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self.asked.update(state["asked"])
        self.bad.update(state["bad"])


def _append(path: Path, lines: list[str]) -> None:
    with path.open("a", encoding="utf-8") as file:
        file.writelines(lines)
