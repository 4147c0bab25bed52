"""Measures speed, waiting for data, memory and the time that is left."""

from __future__ import annotations

import resource
import sys
import time
from typing import TYPE_CHECKING

import torch

from video_llama.runners.hooks.base import Hook

if TYPE_CHECKING:
    from video_llama.runners.runner import Runner

MEMORY_OF_OLD = 0.9
"""Weight of the earlier updates in the running means: about the last ten count."""


class Throughput(Hook):
    """Puts `samples_per_s`, `data_wait`, `memory_gb` and `eta_s` into `runner.figures`."""

    def __init__(self) -> None:
        self._items = 0
        self._started = 0.0
        self._seconds = self._samples = self._waits = self._steps = 0.0

    def start(self, runner: Runner) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def after_step(self, runner: Runner) -> None:
        """Count the items."""
        self._items += len(runner.batch.item_ids)

    def measure(self, runner: Runner) -> dict[str, float]:
        """Items, and seconds that the data kept waiting."""
        items, self._items = self._items, 0
        return {"items": float(items), "wait": runner.wait_seconds}

    def after_update(self, runner: Runner) -> None:
        """Renew the running means."""
        now = time.perf_counter()
        new = (
            now - self._started,
            runner.sums["items"],
            runner.sums["wait"] / runner.world.size,
            float(runner.step - runner.previous_step),
        )
        old = (self._seconds, self._samples, self._waits, self._steps)
        self._seconds, self._samples, self._waits, self._steps = (
            MEMORY_OF_OLD * a + b for a, b in zip(old, new, strict=True)
        )
        self._started, runner.wait_seconds = now, 0.0
        runner.figures.update(
            samples_per_s=self._samples / self._seconds,
            data_wait=self._waits / self._seconds,
            memory_gb=memory_gb(runner.world.device),
            eta_s=(runner.num_steps - runner.step) * self._seconds / self._steps,
        )


def memory_gb(device: torch.device) -> float:
    """The most memory that this process has had so far, GB: of the GPU, or of the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9
