"""Ends a run in order when the system or the user asks for it."""

from __future__ import annotations

import logging
import os
import signal
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any

from video_llama.runners.hooks.base import Hook

if TYPE_CHECKING:
    from video_llama.runners.runner import Runner

logger = logging.getLogger(__name__)

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class StopOnSignal(Hook):
    """SIGTERM or SIGINT in any process stops all of them after the same update.

    A second signal has its usual effect, at once.
    """

    def __init__(self) -> None:
        self._asked = False
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def start(self, runner: Runner) -> None:
        """Take the signals over."""
        if threading.current_thread() is threading.main_thread():  # Python allows it nowhere else
            self._before = {number: signal.signal(number, self._ask) for number in SIGNALS}

    def measure(self, runner: Runner) -> dict[str, float]:
        """Whether this process was asked to stop."""
        return {"stop": float(self._asked)}

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
        self._asked = True
        self.close()
        name = signal.Signals(number).name
        logger.warning("%s: saving after this step; once more ends the run at once", name)
