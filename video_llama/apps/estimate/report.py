"""Show estimates as text and as plain values."""

from __future__ import annotations

import io
from dataclasses import asdict
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

from video_llama.apps.estimate.hardware import Gpu
from video_llama.apps.estimate.measure import BatchRow
from video_llama.apps.estimate.memory import Memory
from video_llama.apps.estimate.plan import ChatPlan, TrainingPlan

WIDTH = 96
ASSUMED = (
    "Peaks and bandwidths are the makers' figures; efficiencies, lengths of texts and times of "
    "decoding are assumed: docs/speed.md lists them."
)


def as_values(plan: TrainingPlan | ChatPlan, gpu: Gpu) -> dict[str, Any]:
    """Return an estimate for a program."""
    kind = "training" if isinstance(plan, TrainingPlan) else "chat"
    return {"kind": kind, "gpu": asdict(gpu), **asdict(plan)}


def as_text(plan: TrainingPlan | ChatPlan, gpu: Gpu) -> str:
    """Return an estimate for a person."""
    content = _training(plan, gpu) if isinstance(plan, TrainingPlan) else _chat(plan, gpu)
    console = Console(file=io.StringIO(), width=WIDTH)
    console.print(content)
    output = console.file
    assert isinstance(output, io.StringIO)
    return output.getvalue().rstrip()


def _training(plan: TrainingPlan, gpu: Gpu) -> Group:
    table = _table("per sample", "part", "TFLOP", "GB moved", "ms of a step")
    for part, flops in plan.flops_per_sample.items():
        moved = plan.bytes_per_sample[part] / 1e9
        table.add_row(
            part, f"{flops / 1e12:.4g}", f"{moved:.3g}", f"{plan.seconds_per_step[part] * 1e3:.3g}"
        )
    lines = [
        f"{plan.gpus} x {gpu.name}: {plan.samples_per_second:,.1f} samples/s, "
        f"{plan.step_seconds * 1e3:,.1f} ms a step, {plan.hours:,.1f} hours for the configuration",
        f"of a step: arithmetic {_ms(plan.compute_seconds)}, memory {_ms(plan.memory_seconds)}, "
        f"starting operations {_ms(plan.launch_seconds)}, "
        f"communication {_ms(plan.communication_seconds)} "
        f"({plan.communication_bytes / 1e6:,.1f} MB sent); "
        f"decoding beside it {_ms(plan.loading_seconds)}",
        f"bottleneck: {plan.bottleneck}; model operations are {plan.utilisation:.0%} of the peak",
        _verdict(plan.memory, gpu, fits=plan.fits),
    ]
    return Group(
        _parameters(plan.parameters, plan.trained),
        _items(plan.items),
        table,
        _memory(plan.memory),
        *map(Text, [*lines, ASSUMED]),
    )


def _chat(plan: ChatPlan, gpu: Gpu) -> Group:
    table = _table("one question", "part", "TFLOP", "ms")
    for part, flops in plan.flops.items():
        table.add_row(part, f"{flops / 1e12:.4g}", f"{plan.seconds[part] * 1e3:.3g}")
    lines = [
        f"{gpu.name}: first token after {_ms(plan.first_token_seconds)} (and "
        f"{_ms(plan.decoding_seconds)} of one core to read the clip), then "
        f"{plan.tokens_per_second:,.1f} tokens/s, {plan.compiled_tokens_per_second:,.1f} compiled",
        f"bottleneck of a token: {plan.bottleneck}",
        _verdict(plan.memory, gpu, fits=plan.fits),
    ]
    return Group(
        _parameters(plan.parameters, 0),
        _items([plan.item]),
        table,
        _memory(plan.memory),
        *map(Text, [*lines, ASSUMED]),
    )


def _table(title: str, first: str, *others: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for name in others:
        table.add_column(name, justify="right")
    return table


def _parameters(counts: dict[str, int], trained: int) -> Table:
    table = _table("parameters", "part", "number")
    for part, count in counts.items():
        table.add_row(part, f"{count:,}")
    table.add_section()
    table.add_row("all", f"{sum(counts.values()):,}")
    table.add_row("trained", f"{trained:,}")
    table.add_row("frozen", f"{sum(counts.values()) - trained:,}")
    return table


def _items(items: list[BatchRow]) -> Table:
    table = _table(
        "assumed rows of a batch",
        "data set",
        "share",
        "frames",
        "segments",
        "media",
        "text",
        "loss",
    )
    for item in items:
        numbers = (item.frames, item.segments, item.media_tokens, item.text_tokens, item.labelled)
        table.add_row(item.name, f"{item.share:.0%}", *map(str, numbers))
    return table


def _memory(memory: Memory) -> Table:
    table = _table("memory of one GPU", "what", "GB")
    rows = {f"weights of {part}": size for part, size in memory.weights.items()}
    rows |= {
        "gradients": memory.gradients,
        "optimiser": memory.optimiser,
        "activations, keys and values": memory.activations,
        "temporary": memory.temporary,
        "reserved": memory.reserved,
    }
    for name, size in rows.items():
        if size:
            table.add_row(name, f"{size / 1e9:.2f}")
    table.add_section()
    table.add_row("all", f"{memory.total / 1e9:.2f}")
    return table


def _verdict(memory: Memory, gpu: Gpu, *, fits: bool) -> str:
    size = f"{memory.total / 1e9:.1f} GB of {gpu.memory / 1e9:.0f} GB"
    if fits:
        return f"fits: {size}"
    return (
        f"DOES NOT FIT: {size}. Less memory: model.quantization=nf4, a smaller "
        "run.batch_size_train, model.use_grad_checkpoint=true, run.fsdp=true on several GPUs"
    )


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"
