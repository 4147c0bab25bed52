"""Ends a run in order when the system or the user asks for it."""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from types import FrameType
from typing import TYPE_CHECKING, Any

from video_llama.runners.hooks.base import Hook

if TYPE_CHECKING:
    from video_llama.runners.runner import Runner

logger = logging.getLogger(__name__)

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
