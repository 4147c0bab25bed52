"""What devices can do: their makers' public figures, and the part of it that is assumed.

Torch-free. Peaks are dense ones, without sparsity, with sums in fp32. Sources, by the title of the
maker's document: "NVIDIA A100 Tensor Core GPU", "NVIDIA H100 Tensor Core GPU", "NVIDIA H200 Tensor
Core GPU", "NVIDIA V100 Tensor Core GPU" (data sheets, the SXM versions; V100 with 32 GB), "NVIDIA
L4 Tensor Core GPU", "NVIDIA T4" (data sheets), "NVIDIA Ampere GA102 GPU Architecture" (RTX 3090),
"NVIDIA Ada GPU Architecture" (RTX 4090; white papers).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from video_llama.common.registry import suggestion
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
    """Units: GB, GB/s, TFLOP/s, TFLOP/s, GB/s."""
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
        """What a precision is computed in."""
        return precision if precision in self.half else "fp32"


def find_gpu(name: str) -> Gpu:
    """A GPU of the table.

    Raises:
        ConfigError: it is not in the table.
    """
    if name not in GPUS:
        raise ConfigError(f"--gpu: {name!r} given; {suggestion(name, [*GPUS, 'cpu'])}")
    return GPUS[name]


def gpu_rates(gpu: Gpu) -> Rates:
    """The assumed rates of a GPU."""

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
