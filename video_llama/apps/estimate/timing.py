"""How long a part takes on a device: its arithmetic, its memory traffic and its launches."""

from __future__ import annotations

from dataclasses import dataclass

from video_llama.apps.estimate.hardware import BYTES, INT8_SLOWDOWN, Rates
from video_llama.apps.estimate.work import Work


@dataclass(frozen=True)
class Phase:
    """One pass of one part.

    Attributes:
        part: its name.
        work: what is done.
        storage: how its weights are stored, by the names of `hardware.BYTES`.
        precision: what it computes in.
        shape: rows, inputs and outputs of its typical product.
        launch_factor: operations beyond those counted, as a factor.
    """

    part: str
    work: Work
    storage: str
    precision: str
    shape: tuple[float, int, int]
    launch_factor: float = 1.0

    @property
    def bytes_moved(self) -> float:
        """Weights read and element-wise traffic."""
        return self._weight_bytes() + self.work.moved * BYTES[self.precision]

    def _weight_bytes(self) -> float:
        stored = BYTES[self.storage]
        if self.storage == "nf4" and self.shape[0] > 8:
            # Many rows: the weights are written out in the computing precision first, then read.
            stored += 2 * BYTES[self.precision]
        return self.work.weights * stored


@dataclass(frozen=True)
class Seconds:
    """Where the time of a phase, or of several, goes."""

    compute: float = 0.0
    memory: float = 0.0
    launches: float = 0.0

    @property
    def total(self) -> float:
        """All of it."""
        return self.compute + self.memory + self.launches

    def __add__(self, other: Seconds) -> Seconds:
        return Seconds(
            self.compute + other.compute,
            self.memory + other.memory,
            self.launches + other.launches,
        )


def seconds_of(phase: Phase, rates: Rates) -> Seconds:
    """The roofline of a phase.

    A product takes as long as its arithmetic or the reading of its weights, whichever is longer;
    element-wise operations take as long as their traffic and come on top. Where the device works on
    its own, starting operations only shows when it takes longer than the work.

    Args:
        phase: what is done.
        rates: of the device.
    """
    work, precision = phase.work, rates.computed(phase.precision)
    slowdown = INT8_SLOWDOWN if phase.storage == "int8" else 1.0
    arithmetic = work.matmul / rates.matmul(precision, *phase.shape) * slowdown
    reading = phase._weight_bytes() / rates.stream
    attention = work.attention / rates.attention(precision) if work.attention else 0.0
    traffic = work.moved * BYTES[precision] / rates.moved
    if not rates.overlaps:
        # Reading the weights is part of the product's measured time.
        return Seconds(arithmetic + attention, traffic, _launching(phase, rates))
    compute = attention + (arithmetic if arithmetic >= reading else 0.0)
    memory = traffic + (reading if reading > arithmetic else 0.0)
    return Seconds(compute, memory, max(0.0, _launching(phase, rates) - compute - memory))


def _launching(phase: Phase, rates: Rates) -> float:
    return phase.work.launches * phase.launch_factor * rates.launch
