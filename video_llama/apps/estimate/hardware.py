"""What devices can do: the makers' figures for GPUs, measured rates for this machine's processor.

Peaks are dense ones, without sparsity, with sums in fp32. Sources, by the title of the maker's
document: "NVIDIA A100 Tensor Core GPU", "NVIDIA H100 Tensor Core GPU", "NVIDIA H200 Tensor Core
GPU", "NVIDIA V100 Tensor Core GPU" (data sheets, the SXM versions; V100 with 32 GB), "NVIDIA L4
Tensor Core GPU", "NVIDIA T4" (data sheets), "NVIDIA Ampere GA102 GPU Architecture" (RTX 3090),
"NVIDIA Ada GPU Architecture" (RTX 4090; white papers). Efficiencies are assumed: no GPU has been
measured with this library yet.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path

import torch
import torch.nn.functional as F

from video_llama.common.registry import suggestion
from video_llama.config.schema import Config
from video_llama.types import ConfigError

BYTES = {"fp32": 4.0, "bf16": 2.0, "fp16": 2.0, "int8": 1.0, "nf4": 0.516}
"""Of a stored number; nf4 with its scales, which are quantised themselves."""
ATTENTION_EFFICIENCY = 0.35
"""Assumed part of the peak in attention, whose factors are narrow."""
STREAM_EFFICIENCY = 0.8
"""Assumed part of the memory bandwidth in long reads and writes."""
LAUNCH_SECONDS = 20e-6
"""Assumed time in which the host starts one operation from Python, through modules and hooks."""
COMPILED_LAUNCH_SECONDS = 0.6e-6
"""The same inside a compiled, recorded graph."""
QUANTISED_LAUNCHES = {"none": 1.0, "int8": 2.0, "nf4": 1.3}
"""How many more operations a layer has whose weights are quantised, assumed."""
INT8_SLOWDOWN = 2.0
"""Assumed: products in int8 with outliers in fp16 take so much longer than in fp16."""
LINK_EFFICIENCY = 0.7
"""Assumed part of a link's bandwidth in collective operations."""
NODE_BANDWIDTH = 25e9
"""Assumed bytes per second between two machines, one way (200 Gbit/s)."""
GPUS_PER_NODE = 8
RESERVED_BYTES = 1.2e9
"""Assumed: context, kernels, workspaces and unused rests of the allocator."""
MIN_CALLS, MEASURED_SECONDS = 3, 0.1
"""Each rate of a CPU is the mean of so many calls, and over so long."""
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
    """

    name: str
    memory: float
    bandwidth: float
    peaks: dict[str, float]
    link: float
    efficiency: float


def _gpu(
    name: str,
    gigabytes: float,
    bandwidth: float,
    half: float,
    single: float,
    link: float,
    efficiency: float,
    *,
    bf16: bool = True,
) -> Gpu:
    """Take GB, GB/s, TFLOP/s in half and single precision, and GB/s."""
    peaks = {"fp32": single * 1e12, "fp16": half * 1e12} | ({"bf16": half * 1e12} if bf16 else {})
    return Gpu(name, gigabytes * 1e9, bandwidth * 1e9, peaks, link * 1e9, efficiency)


GPUS = {
    gpu.name: gpu
    for gpu in (
        _gpu("a100-40g", 40, 1555, 312, 19.5, 300, 0.65),
        _gpu("a100-80g", 80, 2039, 312, 19.5, 300, 0.65),
        _gpu("h100", 80, 3350, 989, 67, 450, 0.55),
        _gpu("h200", 141, 4800, 989, 67, 450, 0.55),
        _gpu("rtx3090", 24, 936, 71, 35.6, 16, 0.75),
        _gpu("rtx4090", 24, 1008, 165.2, 82.6, 16, 0.75),
        _gpu("l4", 24, 300, 121, 30.3, 16, 0.5),
        _gpu("v100", 32, 900, 125, 15.7, 150, 0.6, bf16=False),
        _gpu("t4", 16, 320, 65, 8.1, 8, 0.4, bf16=False),
    )
}
"""GB are 10^9 bytes, a little less than these devices report. Links: NVLink, or PCIe at half of its
nominal rate where neighbours share it. The last number is the assumed efficiency, lower where the
power limit or the memory keeps large products from the peak."""


@dataclass(frozen=True)
class Rates:
    """How fast a device works, however that is known.

    Attributes:
        matmul: operations per second in products of (rows, inputs) with (inputs, outputs) in a
            precision.
        attention: the same in attention.
        moved: bytes per second of element-wise operations.
        stream: bytes per second of reading weights.
        launch: seconds per operation.
        overlaps: whether the host starts operations while the device works.
        half: precisions that it computes; others become fp32.
    """

    matmul: Callable[[str, float, int, int], float]
    attention: Callable[[str], float]
    moved: float
    stream: float
    launch: float
    overlaps: bool
    half: frozenset[str] = field(default_factory=frozenset)

    def computed(self, precision: str) -> str:
        """Return what a precision is computed in."""
        return precision if precision in self.half else "fp32"


def find_gpu(name: str) -> Gpu:
    """Find a GPU of the table.

    Raises:
        ConfigError: it is not in the table.
    """
    if name not in GPUS:
        raise ConfigError(f"--gpu: {name!r} given; {suggestion(name, [*GPUS, 'cpu'])}")
    return GPUS[name]


def gpu_rates(gpu: Gpu) -> Rates:
    """Return the assumed rates of a GPU."""

    def peak(precision: str) -> float:
        return gpu.peaks.get(precision, gpu.peaks["fp32"])

    return Rates(
        # fp32 products run outside of the tensor cores, where more of the peak is reached.
        matmul=lambda precision, rows, inputs, outputs: (
            peak(precision) * (gpu.efficiency if peak(precision) > gpu.peaks["fp32"] else 0.8)
        ),
        attention=lambda precision: peak(precision) * ATTENTION_EFFICIENCY,
        moved=gpu.bandwidth * STREAM_EFFICIENCY,
        stream=gpu.bandwidth * STREAM_EFFICIENCY,
        launch=LAUNCH_SECONDS,
        overlaps=True,
        half=frozenset(gpu.peaks) - {"fp32"},
    )


def cpu_rates() -> Rates:
    """Measure what torch reaches on this machine now, in fp32, with its number of threads.

    Products are measured at the shapes that are asked for, attention and element-wise operations at
    one typical shape.
    """
    return Rates(
        matmul=lambda precision, rows, inputs, outputs: _product_rate(
            max(1, min(int(rows), int(LARGEST_PRODUCT / (2 * inputs * outputs)))), inputs, outputs
        ),
        attention=lambda precision: _attention_rate(),
        moved=_element_wise_rate(),
        stream=_stream_rate(),
        launch=_launch_seconds(),
        overlaps=False,
    )


def this_machine() -> Gpu:
    """Describe this machine as a GPU; its peak is what a large product reaches."""
    pages = Path("/proc/meminfo")
    memory = 0.0
    if pages.exists():
        total = next(line for line in pages.read_text().splitlines() if line.startswith("MemTotal"))
        memory = int(total.split()[1]) * 1024.0
    peak = _product_rate(512, 1024, 1024)
    return Gpu("cpu", memory, _stream_rate(), {"fp32": peak}, 2e9, 1.0)


def on_cpu(cfg: Config) -> Config:
    """Return a configuration as a CPU computes it: fp16 and mixed precision become fp32 there.

    bf16 is left as it is in memory, and taken to be computed like fp32.
    """
    names = ("vit_precision", "imagebind_precision", "precision")
    changed = {name: "fp32" for name in names if getattr(cfg.model, name) == "fp16"}
    model = replace(cfg.model, **changed)  # type: ignore[arg-type]
    return replace(cfg, model=model, run=replace(cfg.run, amp=False))


def _seconds(function: Callable[[], object]) -> float:
    """Return the mean time of a call over a while: other programs weigh as in a long run."""
    function()
    calls, start = 0, time.perf_counter()
    while calls < MIN_CALLS or time.perf_counter() - start < MEASURED_SECONDS:
        function()
        calls += 1
    return (time.perf_counter() - start) / calls


@cache
def _product_rate(rows: int, inputs: int, outputs: int) -> float:
    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    with torch.inference_mode():
        seconds = _seconds(partial(F.linear, x, weight))
    return 2.0 * rows * inputs * outputs / seconds


@cache
def _attention_rate() -> float:
    x = torch.randn(4, 8, 128, 64)
    with torch.inference_mode():
        seconds = _seconds(partial(F.scaled_dot_product_attention, x, x, x))
    return 4.0 * 4 * 8 * 128 * 128 * 64 / seconds


@cache
def _element_wise_rate() -> float:
    """Time the mix of a layer: a norm, a sum and an activation."""
    x, y = torch.randn(512, 1024), torch.randn(512, 1024)

    def mix() -> object:
        normed = F.layer_norm(x, (1024,))
        return F.gelu(normed + y)

    with torch.inference_mode():
        return 7 * x.numel() * 4 / _seconds(mix)


@cache
def _stream_rate() -> float:
    weight, x = torch.randn(4096, 4096), torch.randn(1, 4096)
    with torch.inference_mode():
        return weight.numel() * 4 / _seconds(partial(F.linear, x, weight))


@cache
def _launch_seconds() -> float:
    """Time an operation on next to nothing, called through a module."""
    x, chain = torch.randn(1, 16), torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(8)))
    with torch.inference_mode():
        return _seconds(partial(chain, x)) / len(chain)


def forget_rates() -> None:
    """Forget what was measured, because the machine may be busier or idler now."""
    rates = (_product_rate, _attention_rate, _element_wise_rate, _stream_rate, _launch_seconds)
    for rate in rates:
        rate.cache_clear()
