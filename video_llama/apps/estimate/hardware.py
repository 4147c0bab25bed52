"""What devices can do: GPUs by the figures of `hardware.yaml`, this machine by measuring it."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
import torch.nn.functional as F
import yaml
from torch.utils.benchmark import Timer

from video_llama.common.io import package_file
from video_llama.common.registry import suggestion
from video_llama.config.schema import Config
from video_llama.types import ConfigError

BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0, "nf4": 0.516}
"""Of a stored number; nf4 with its scales, which are quantised themselves."""
FIGURES: dict[str, dict[str, Any]] = yaml.safe_load(
    package_file("apps/estimate/hardware.yaml").read_text("utf-8")
)
ASSUMED = FIGURES["assumed"]
LARGEST_PRODUCT = 2e9
"""Operations of a timed product: more rows than that take tell nothing new."""


@dataclass(frozen=True)
class Gpu:
    """One device.

    Attributes:
        name: as in `--gpu`.
        memory: bytes.
        bandwidth: of the memory, bytes per second.
        peaks: operations per second by precision; a missing one is computed in fp32.
        link: bytes per second to the other GPUs of the machine, one way.
        efficiency: assumed part of the peak in large products.
        attention_efficiency: the same in attention.
        stream: bytes per second of reading weights.
        moved: the same of element-wise operations.
        launch: seconds in which the host starts an operation.
        overlaps: whether the device works while it does.
    """

    name: str
    memory: float
    bandwidth: float
    peaks: dict[str, float]
    link: float
    efficiency: float
    attention_efficiency: float
    stream: float
    moved: float
    launch: float
    overlaps: bool = True

    def computed(self, precision: str) -> str:
        """Return what a precision is computed in."""
        return precision if precision in self.peaks else "fp32"

    def product_rate(self, precision: str, rows: int, inputs: int, outputs: int) -> float:
        """Return operations per second of (rows, inputs) times (inputs, outputs)."""
        peak, single = self.peaks[self.computed(precision)], self.peaks["fp32"]
        return peak * (self.efficiency if peak > single else ASSUMED["fp32_efficiency"])


class Cpu(Gpu):
    """This machine, as torch uses it: in fp32; the rate of each product is measured."""

    def product_rate(self, precision: str, rows: int, inputs: int, outputs: int) -> float:
        """Measure operations per second of (rows, inputs) times (inputs, outputs)."""
        enough = int(LARGEST_PRODUCT / (2 * inputs * outputs))
        return _product_rate(max(1, min(int(rows), enough)), inputs, outputs)


def _gpu(name: str, values: dict[str, float]) -> Gpu:
    half, single = (values[key] * 1e12 for key in ("half", "single"))
    memory, bandwidth, link = (values[key] * 1e9 for key in ("memory", "bandwidth", "link"))
    stream = bandwidth * ASSUMED["stream_efficiency"]
    return Gpu(
        name=name,
        memory=memory,
        bandwidth=bandwidth,
        peaks={"fp32": single, "fp16": half} | ({"bf16": half} if values.get("bf16", True) else {}),
        link=link,
        efficiency=values["efficiency"],
        attention_efficiency=ASSUMED["attention_efficiency"],
        stream=stream,
        moved=stream,
        launch=ASSUMED["launch_microseconds"] * 1e-6,
    )


GPUS = {name: _gpu(name, values) for name, values in FIGURES["gpus"].items()}


def find_gpu(name: str) -> Gpu:
    """Find a GPU of the table, or measure this machine, whose name is `cpu`.

    Raises:
        ConfigError: it is not in the table.
    """
    if name == "cpu":
        return this_machine()
    if name not in GPUS:
        raise ConfigError(f"--gpu: {name!r} given; {suggestion(name, [*GPUS, 'cpu'])}")
    return GPUS[name]


def this_machine() -> Gpu:
    """Measure this machine in fp32, with torch's number of threads, at typical shapes."""
    weight, row, narrow = torch.randn(4096, 4096), torch.randn(1, 4096), torch.randn(1, 16)
    heads, x, y = torch.randn(4, 8, 128, 64), torch.randn(512, 1024), torch.randn(512, 1024)
    chain = torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(8)))
    # The machine may be busier or idler than when it was measured last.
    _product_rate.cache_clear()
    peak = _product_rate(512, 1024, 1024)
    attention = _seconds(partial(F.scaled_dot_product_attention, heads, heads, heads))
    stream = weight.nbytes / _seconds(partial(F.linear, row, weight))
    # The mix of a layer: a norm, a sum and an activation.
    mix = _seconds(lambda: F.gelu(F.layer_norm(x, (1024,)) + y))
    return Cpu(
        name="cpu",
        memory=float(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")),
        bandwidth=stream,
        peaks={"fp32": peak},
        link=2e9,
        efficiency=1.0,
        attention_efficiency=4.0 * 4 * 8 * 128 * 128 * 64 / attention / peak,
        stream=stream,
        moved=7 * x.nbytes / mix,
        # Operations on next to nothing, called through modules.
        launch=_seconds(partial(chain, narrow)) / len(chain),
        overlaps=False,
    )


def on_cpu(cfg: Config) -> Config:
    """Return a configuration as a CPU computes it: fp16 and mixed precision become fp32 there.

    bf16 is left as it is in memory, and taken to be computed like fp32.
    """
    names = ("vit_precision", "imagebind_precision", "precision")
    changed = {name: "fp32" for name in names if getattr(cfg.model, name) == "fp16"}
    model = replace(cfg.model, **changed)  # type: ignore[arg-type]
    return replace(cfg, model=model, run=replace(cfg.run, amp=False))


@cache
def _product_rate(rows: int, inputs: int, outputs: int) -> float:
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    return 2.0 * rows * inputs * outputs / _seconds(partial(F.linear, x, weight))


def _seconds(function: Callable[[], object]) -> float:
    """Return the mean time of a call over a while: other programs weigh as in a long run."""
    # The timer would use one thread, whatever torch is set to.
    timer = Timer("run()", globals={"run": function}, num_threads=torch.get_num_threads())
    with torch.inference_mode():
        return float(timer.blocked_autorange(min_run_time=0.1).mean)
