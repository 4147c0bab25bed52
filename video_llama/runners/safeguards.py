"""Hooks that end a run in order: too many unreadable items, a lost loss, a signal."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from types import FrameType
from typing import Any

from video_llama.runners.hooks import Hook
from video_llama.runners.state import RunState
from video_llama.types import BadItem, DivergedError, TooManyBadItemsError

logger = logging.getLogger(__name__)

MIN_ITEMS = 100
"""Items of a data set that must have been requested before it can be judged."""
MAX_NAMED_ITEMS = 32
"""Items that a message names."""
SIGNALS = (signal.SIGTERM, signal.SIGINT)
SAME_REQUEST = 3.0
"""Seconds in which another signal is the same request: torchrun passes on what a batch system has
sent to its processes too."""


class BadItems(Hook):
    """Lists the unreadable items of training, and ends the run if there are too many."""

    name = "bad_items"

    def __init__(self, names: list[str], max_fraction: float) -> None:
        self._max_fraction = max_fraction
        self._new: list[BadItem] = []
        self._here = {name: [0, 0] for name in names}
        self._requested = dict.fromkeys(names, 0)
        self._bad = dict.fromkeys(names, 0)

    def after_step(self, run: RunState) -> None:
        """Count the batch's items."""
        # A bad item was replaced by another one of the batch, so both were requested.
        counts = self._here.setdefault(run.batch.data_set, [0, 0])
        counts[0] += len(run.batch.item_ids) + len(run.batch.bad_items)
        counts[1] += len(run.batch.bad_items)
        self._new += run.batch.bad_items

    def measure(self, run: RunState) -> dict[str, float]:
        """Return the requested items and the bad ones, by data set."""
        figures: dict[str, float] = {}
        for name in self._requested:
            requested, bad = self._here[name]
            figures |= {f"asked/{name}": float(requested), f"bad/{name}": float(bad)}
            self._here[name] = [0, 0]
        return figures

    def after_update(self, run: RunState) -> None:
        """List new ones and judge the data sets.

        Raises:
            TooManyBadItemsError: in every process.
        """
        for name in self._requested:
            self._requested[name] += round(run.sums[f"asked/{name}"])
            self._bad[name] += round(run.sums[f"bad/{name}"])
        # The list is shared among the processes, so all of them come here or none does.
        if any(run.sums[f"bad/{name}"] for name in self._bad):
            items, self._new = self._new, []
            run.bad_items.add(items)
        run.figures["bad_items"] = float(len(run.bad_items))
        for name, bad in self._bad.items():
            requested = self._requested[name]
            if requested >= MIN_ITEMS and bad > self._max_fraction * requested:
                raise TooManyBadItemsError(
                    f"data set {name}: {bad} of {requested} items that were asked for cannot be "
                    f"read ({bad / requested:.1%}; run.max_bad_fraction is "
                    f"{self._max_fraction:.1%}). They are listed in {run.bad_items.path}: mend or "
                    "remove them (`video-llama data check` finds all), or raise "
                    "run.max_bad_fraction"
                )

    def finish(self, run: RunState) -> None:
        """Log how many there were."""
        for name, bad in self._bad.items():
            if bad:
                logger.info(
                    "data set %s: %d of %d items that were asked for could not be read; see %s",
                    *(name, bad, self._requested[name], run.bad_items.path),
                )

    def state_dict(self) -> dict[str, Any]:
        """Return the counts; what was listed is in the file."""
        return {"asked": dict(self._requested), "bad": dict(self._bad)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self._requested.update(state["asked"])
        self._bad.update(state["bad"])


class LossGuard(Hook):
    """Ends a run whose loss or gradient was not finite for too many updates, which are skipped."""

    name = "guard"

    def __init__(self, most: int) -> None:
        self._most = most
        self._in_a_row = 0
        self._skipped = 0
        self._items: list[str] = []

    def after_step(self, run: RunState) -> None:
        """Remember the items, in case this update fails."""
        self._items += run.batch.item_ids

    def after_update(self, run: RunState) -> None:
        """Count, and stop the run if there were too many.

        Raises:
            DivergedError: in every process.
        """
        items, self._items = self._items, []
        if run.healthy:
            self._in_a_row = 0
            return
        self._in_a_row += 1
        self._skipped += 1
        # The loss is a mean over all processes: any of their items may be the cause.
        items = run.processes.gather(items)
        shown = ", ".join(items[:MAX_NAMED_ITEMS]) + (", ..." if items[MAX_NAMED_ITEMS:] else "")
        if run.processes.is_main:
            logger.warning("step %d: loss or gradient not finite, skipped: %s", run.step, shown)
        if self._in_a_row > self._most:
            raise DivergedError(
                f"loss or gradient not finite in {self._in_a_row} updates in a row "
                f"(run.max_nonfinite_steps {self._most}), the last at step {run.step} with the "
                f"items {shown}; the weights before them are in the last checkpoint under "
                f"{run.folder}. Look at these items, or lower run.init_lr or set run.grad_clip"
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the counts."""
        return {"in_a_row": self._in_a_row, "skipped": self._skipped}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on counting."""
        self._in_a_row, self._skipped = state["in_a_row"], state["skipped"]


class StopOnSignal(Hook):
    """Stops all processes after the same update when one of them gets SIGTERM or SIGINT.

    A second signal, some seconds later, has its usual effect, at once.
    """

    def __init__(self) -> None:
        self._requested_at: float | None = None
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def start(self, run: RunState) -> None:
        """Install the handlers."""
        # In every process: torchrun passes a signal on, Ctrl-C in a terminal goes to all at once.
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}

    def measure(self, run: RunState) -> dict[str, float]:
        """Return whether this process got a signal."""
        return {"stop": float(self._requested_at is not None)}

    def after_update(self, run: RunState) -> None:
        """Stop if any process got one."""
        run.stopping = run.sums["stop"] > 0

    def close(self) -> None:
        """Restore the handlers."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a data worker, which has inherited this function
        # Nothing is saved here: the handler may interrupt an update, or a write.
        now = time.monotonic()
        if self._requested_at is None:
            self._requested_at = now
            name = signal.Signals(number).name
            logger.warning("%s: saving after this step; once more ends the run at once", name)
        elif now - self._requested_at > SAME_REQUEST:
            self.close()
            if signal.getsignal(number) is signal.SIG_IGN:
                # A shell's script starts what it puts in the background without Ctrl-C.
                signal.signal(number, signal.SIG_DFL)
            signal.raise_signal(number)
