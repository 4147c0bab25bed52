"""bad_items.jsonl: every item whose media could not be read, once, with path and reason.

Counts, lists and limits the items whose media could not be read.

Ends a run whose loss is lost.

Ends a run in order when the system or the user asks for it.
"""

from __future__ import annotations

import json
import logging
import os
import signal
import threading
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any

from video_llama.common.io import atomic_write
from video_llama.runners.distributed import World
from video_llama.runners.hooks import Hook
from video_llama.types import BadItem, DivergedError, TooManyBadItemsError

if TYPE_CHECKING:
    from video_llama.runners.runner import Runner

BAD_ITEMS = "bad_items.jsonl"


class BadItemList:
    """The unreadable items that the processes of a run have met, in training and evaluation.

    A resumed run goes on with the list of the interrupted one.

    Args:
        folder: of the run.
        world: the processes; the main one writes.

    Attributes:
        path: of the file.
    """

    def __init__(self, folder: Path, world: World) -> None:
        self.path = folder / BAD_ITEMS
        self._world = world
        lines = world.on_main(self._read)
        self._listed = {(line["data_set"], line["item_id"]) for line in map(json.loads, lines)}

    def __len__(self) -> int:
        return len(self._listed)

    def add(self, items: Iterable[BadItem]) -> None:
        """List those that are new; every process has to call this, with its own."""
        lines = []
        for item in self._world.gather(list(items)):
            if (key := (item.data_set, item.item_id)) not in self._listed:
                self._listed.add(key)
                lines.append(json.dumps(asdict(item), ensure_ascii=False))
        if lines and self._world.is_main:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)

    def _read(self) -> list[str]:
        """The whole lines; one that a crash has cut short is taken out of the file."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        kept = [line for line in text.splitlines() if _is_item(line)]
        whole = "".join(f"{line}\n" for line in kept)
        if whole != text:
            with atomic_write(self.path) as temporary:
                temporary.write_text(whole, encoding="utf-8")
        return kept


def _is_item(line: str) -> bool:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(item, dict) and {"data_set", "item_id"} <= item.keys()


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


SIGNALS = (signal.SIGTERM, signal.SIGINT)

SAME_REQUEST = 3.0
"""Seconds in which another signal is the same request: torchrun passes on what a batch system has
sent to its processes too."""


class StopOnSignal(Hook):
    """SIGTERM or SIGINT in any process stops all of them after the same update.

    A second signal, some seconds later, has its usual effect, at once.
    """

    def __init__(self) -> None:
        self._asked_at: float | None = None
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def start(self, runner: Runner) -> None:
        """Take the signals over."""
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def measure(self, runner: Runner) -> dict[str, float]:
        """Whether this process was asked to stop."""
        return {"stop": float(self._asked_at is not None)}

    def after_update(self, runner: Runner) -> None:
        """Stop if any process was asked to."""
        runner.stopping = runner.sums["stop"] > 0

    def close(self) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a data worker, which has inherited this function
        now = time.monotonic()
        if self._asked_at is None:
            self._asked_at = now
            name = signal.Signals(number).name
            logger.warning("%s: saving after this step; once more ends the run at once", name)
        elif now - self._asked_at > SAME_REQUEST:
            self.close()
            if signal.getsignal(number) is signal.SIG_IGN:
                # A shell's script starts what it puts in the background without Ctrl-C.
                signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
