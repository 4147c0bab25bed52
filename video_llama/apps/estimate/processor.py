"""The rates of this machine's processor, measured in a second or two. Imports torch when called."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from pathlib import Path

from video_llama.apps.estimate.hardware import Gpu, Rates
from video_llama.config.schema import Config
from video_llama.models.settings import PrecisionName

LEAST_CALLS = 3
MEASURED_SECONDS = 0.1
"""Each rate is the mean over so long."""
LARGEST_PRODUCT = 2e9
"""Operations of a timed product: more rows than that take tell nothing new."""


def cpu_rates() -> Rates:
    """What torch reaches on this machine now, in fp32 and with its present number of threads.

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
    """Its memory, in the form of the table of GPUs; the peak is what a large product reaches."""
    pages = Path("/proc/meminfo")
    memory = 0.0
    if pages.exists():
        total = next(line for line in pages.read_text().splitlines() if line.startswith("MemTotal"))
        memory = int(total.split()[1]) * 1024.0
    peak = _product_rate(512, 1024, 1024)
    return Gpu("cpu", memory, _stream_rate(), {"fp32": peak}, 2e9, 1.0)


def on_cpu(cfg: Config) -> Config:
    """The configuration as a CPU computes it: fp16 and mixed precision become fp32 there.

    bf16 is left as it is in memory, and taken to be computed like fp32.
    """
    model = cfg.model
    fixed = replace(
        model,
        vit_precision=_on_cpu(model.vit_precision),
        imagebind_precision=_on_cpu(model.imagebind_precision),
        precision=_on_cpu(model.precision),
    )
    return replace(cfg, model=fixed, run=replace(cfg.run, amp=False))


def _on_cpu(precision: PrecisionName) -> PrecisionName:
    return "fp32" if precision == "fp16" else precision


def _seconds(function: Callable[[], object]) -> float:
    """The mean time of a call over a while: others on the machine weigh as in a long run."""
    function()
    calls, start = 0, time.perf_counter()
    while calls < LEAST_CALLS or time.perf_counter() - start < MEASURED_SECONDS:
        function()
        calls += 1
    return (time.perf_counter() - start) / calls


@cache
def _product_rate(rows: int, inputs: int, outputs: int) -> float:
    import torch

    x, weight = torch.randn(rows, inputs), torch.randn(outputs, inputs)
    with torch.inference_mode():
        seconds = _seconds(partial(torch.nn.functional.linear, x, weight))
    return 2.0 * rows * inputs * outputs / seconds


@cache
def _attention_rate() -> float:
    import torch

    x = torch.randn(4, 8, 128, 64)
    with torch.inference_mode():
        seconds = _seconds(partial(torch.nn.functional.scaled_dot_product_attention, x, x, x))
    return 4.0 * 4 * 8 * 128 * 128 * 64 / seconds


@cache
def _element_wise_rate() -> float:
    """Of the mix in a layer: a norm, a sum and an activation."""
    import torch

    x, y = torch.randn(512, 1024), torch.randn(512, 1024)

    def mix() -> object:
        normed = torch.nn.functional.layer_norm(x, (1024,))
        return torch.nn.functional.gelu(normed + y)

    with torch.inference_mode():
        return 7 * x.numel() * 4 / _seconds(mix)


@cache
def _stream_rate() -> float:
    import torch

    weight, x = torch.randn(4096, 4096), torch.randn(1, 4096)
    with torch.inference_mode():
        return weight.numel() * 4 / _seconds(partial(torch.nn.functional.linear, x, weight))


@cache
def _launch_seconds() -> float:
    """Of an operation on next to nothing, called through a module."""
    import torch

    x, chain = torch.randn(1, 16), torch.nn.Sequential(*(torch.nn.Linear(16, 16) for _ in range(8)))
    with torch.inference_mode():
        return _seconds(partial(chain, x)) / len(chain)


def measure_anew() -> None:
    """Forget what was measured, because the machine may be busier or idler now."""
    for measured in (_product_rate, _attention_rate, _element_wise_rate, _stream_rate):
        measured.cache_clear()
    _launch_seconds.cache_clear()
