"""What every benchmark shares: interleaved arms, medians, peak memory, a result file."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import json
import platform
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Measurement:
    """One arm of a comparison: seconds of every repeat, and the largest peak memory in MB."""

    seconds: list[float]
    peak_mb: float

    @property
    def median(self) -> float:
        return statistics.median(self.seconds)


@dataclass(frozen=True)
class Comparison:
    """Ours against the reference. Ratios above 1: ours is faster, or takes less memory."""

    name: str
    ours: Measurement
    reference: Measurement

    @property
    def speedup(self) -> float:
        return self.reference.median / self.ours.median

    @property
    def spread(self) -> tuple[float, float]:
        """Smallest and largest speed-up of a pair of neighbouring repeats."""
        pairs = zip(self.reference.seconds, self.ours.seconds, strict=True)
        ratios = [reference / ours for reference, ours in pairs]
        return min(ratios), max(ratios)


def compare(
    name: str,
    ours: Callable[[], object],
    reference: Callable[[], object],
    *,
    repeats: int,
    device: str,
) -> Comparison:
    """Run both arms in turn, after one warm-up of each."""
    times: dict[str, list[float]] = {"ours": [], "reference": []}
    peaks = {"ours": 0.0, "reference": 0.0}
    for repeat in range(repeats + 1):
        for arm, function in (("ours", ours), ("reference", reference)):
            seconds, peak = timed(function, device)
            if repeat:
                peaks[arm] = max(peaks[arm], peak)
                times[arm].append(seconds)
    result = Comparison(
        name,
        Measurement(times["ours"], peaks["ours"]),
        Measurement(times["reference"], peaks["reference"]),
    )
    low, high = result.spread
    print(
        f"{name:<28} ours {result.ours.median:9.4f} s {peaks['ours']:8.0f} MB   "
        f"reference {result.reference.median:9.4f} s {peaks['reference']:8.0f} MB   "
        f"speed-up {result.speedup:5.2f} ({low:.2f} to {high:.2f})",
        flush=True,
    )
    return result


def timed(function: Callable[[], object], device: str) -> tuple[float, float]:
    """Seconds of one call, and the peak memory during it above what was there before, in MB."""
    gc.collect()
    _give_back()
    before = _reset_peak(device)
    start = time.perf_counter()
    function()
    if device == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    return seconds, max(0.0, _peak(device) - before)


def _give_back() -> None:
    """Return what C's allocator keeps of freed memory, which would hide what a call takes."""
    with contextlib.suppress(OSError, AttributeError):  # not glibc
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _reset_peak(device: str) -> float:
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated() / 1e6
    try:
        Path("/proc/self/clear_refs").write_text("5")  # Linux: start VmHWM anew
    except OSError:
        return 0.0
    return _status("VmRSS")


def _peak(device: str) -> float:
    if device == "cuda":
        return torch.cuda.max_memory_allocated() / 1e6
    return _status("VmHWM")


def _status(key: str) -> float:
    path = Path("/proc/self/status")
    if not path.exists():
        return 0.0
    line = next(line for line in path.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) / 1e3


def machine(device: str) -> dict[str, Any]:
    """What the figures were measured on."""
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else platform.processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def write(name: str, device: str, comparisons: list[Comparison], **facts: Any) -> Path:
    """Write `results/<name>.json`."""
    rows = [{**asdict(c), "speedup": c.speedup, "spread": list(c.spread)} for c in comparisons]
    path = RESULTS / f"{name}.json"
    path.parent.mkdir(exist_ok=True)
    content = {"machine": machine(device), **facts, "comparisons": rows}
    path.write_text(json.dumps(content, indent=1) + "\n")
    print(f"written: {path}")
    return path
