"""Show estimates as text and as plain values."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from video_llama.apps.estimate.hardware import Gpu
from video_llama.apps.estimate.memory import Memory
from video_llama.apps.estimate.plan import ChatPlan, TrainingPlan
from video_llama.apps.estimate.rows import BatchRow

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
    if isinstance(plan, TrainingPlan):
        trained, items, costs, lines = plan.trained, plan.items, *_training(plan, gpu)
    else:
        trained, items, costs, lines = 0, [plan.item], *_chat(plan, gpu)
    size = f"{plan.memory.total / 1e9:.1f} GB of {gpu.memory / 1e9:.0f} GB"
    verdict = (
        f"fits: {size}"
        if plan.fits
        else (
            f"DOES NOT FIT: {size}. Less memory: model.quantization=nf4, a smaller "
            "run.batch_size_train, model.use_grad_checkpoint=true, run.fsdp=true on several GPUs"
        )
    )
    return rendered(
        _parameters(plan.parameters, trained),
        _items(items),
        costs,
        _memory(plan.memory),
        *map(Text, [*lines, verdict, ASSUMED]),
    )


def rendered(*parts: RenderableType, width: int = 80) -> str:
    """Return tables and texts as they are printed to a terminal."""
    console = Console(file=io.StringIO(), width=width)
    with console.capture() as captured:
        console.print(*parts, sep="\n")
    return captured.get().rstrip()


def table(
    title: str, head: Sequence[str], *sections: Iterable[Sequence[str]], words: int = 1
) -> Table:
    """Make a table; the first `words` columns are words, the others numbers."""
    made = Table(title=title, title_justify="left")
    for place, name in enumerate(head):
        made.add_column(name, justify="left" if place < words else "right")
    for section in sections:
        for row in section:
            made.add_row(*row)
        made.add_section()
    return made


def _training(plan: TrainingPlan, gpu: Gpu) -> tuple[Table, list[str]]:
    moved, seconds = plan.bytes_per_sample, plan.seconds_per_step
    costs = [
        [part, f"{flops / 1e12:.4g}", f"{moved[part] / 1e9:.3g}", f"{seconds[part] * 1e3:.3g}"]
        for part, flops in plan.flops_per_sample.items()
    ]
    return table("per sample", ["part", "TFLOP", "GB moved", "ms of a step"], costs), [
        f"{plan.gpus} x {gpu.name}: {plan.samples_per_second:,.1f} samples/s, "
        f"{plan.step_seconds * 1e3:,.1f} ms a step, {plan.hours:,.1f} hours for the configuration",
        f"of a step: arithmetic {_ms(plan.compute_seconds)}, memory {_ms(plan.memory_seconds)}, "
        f"starting operations {_ms(plan.launch_seconds)}, "
        f"communication {_ms(plan.communication_seconds)} "
        f"({plan.communication_bytes / 1e6:,.1f} MB sent); "
        f"decoding beside it {_ms(plan.loading_seconds)}",
        f"bottleneck: {plan.bottleneck}; model operations are {plan.utilisation:.0%} of the peak",
    ]


def _chat(plan: ChatPlan, gpu: Gpu) -> tuple[Table, list[str]]:
    costs = [
        [part, f"{flops / 1e12:.4g}", f"{plan.seconds[part] * 1e3:.3g}"]
        for part, flops in plan.flops.items()
    ]
    return table("one question", ["part", "TFLOP", "ms"], costs), [
        f"{gpu.name}: first token after {_ms(plan.first_token_seconds)} (and "
        f"{_ms(plan.decoding_seconds)} of one core to read the clip), then "
        f"{plan.tokens_per_second:,.1f} tokens/s, {plan.compiled_tokens_per_second:,.1f} compiled",
        f"bottleneck of a token: {plan.bottleneck}",
    ]


def _parameters(counts: dict[str, int], trained: int) -> Table:
    total = sum(counts.values())
    sums = {"all": total, "trained": trained, "frozen": total - trained}
    sections = [[[name, f"{count:,}"] for name, count in each.items()] for each in (counts, sums)]
    return table("parameters", ["part", "number"], *sections)


def _items(items: Sequence[BatchRow]) -> Table:
    head = ["data set", "share", "frames", "segments", "media", "text", "loss"]
    rows = [
        [item.name, f"{item.share:.0%}"]
        + [str(n) for n in (item.frames, item.segments, item.media_tokens)]
        + [str(n) for n in (item.text_tokens, item.labelled)]
        for item in items
    ]
    return table("assumed rows of a batch", head, rows)


def _memory(memory: Memory) -> Table:
    parts = {f"weights of {part}": size for part, size in memory.weights.items()} | {
        "gradients": memory.gradients,
        "optimiser": memory.optimiser,
        "activations, keys and values": memory.activations,
        "temporary": memory.temporary,
        "reserved": memory.reserved,
    }
    rows = [[name, f"{size / 1e9:.2f}"] for name, size in parts.items() if size]
    return table("memory of one GPU", ["what", "GB"], rows, [["all", f"{memory.total / 1e9:.2f}"]])


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms"
