"""The parts of the GPU benchmark, each run as a process: `python -m benchmarks.gpu.parts NAME`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks import released
from benchmarks.gpu import answers, checks, training
from benchmarks.harness import timed
from video_llama.apps.estimate.hardware import (
    GPUS,
    Gpu,
    on_cpu,
    this_machine,
)
from video_llama.apps.estimate.measure import meta_model
from video_llama.apps.estimate.plan import plan_chat, plan_training
from video_llama.config.load import load_config


def limits(files: Path, size: str, device: str, result: dict[str, Any]) -> None:
    """Measure the card itself: products in half precision, and copies in its memory."""
    side, dtype = (8192, torch.bfloat16) if device == "cuda" else (512, torch.float32)
    x = torch.randn(side, side, device=device, dtype=dtype)
    y = torch.empty_like(x)
    multiply, copy = partial(torch.matmul, x, x, out=y), partial(y.copy_, x)
    for function in (multiply, copy):
        function()
    seconds = min(timed(multiply, device)[0] for _ in range(5))
    result["figures"]["card: products, TFLOP/s"] = 2 * side**3 / seconds / 1e12
    seconds = min(timed(copy, device)[0] for _ in range(5))
    result["figures"]["card: memory, TB/s"] = 2 * x.nbytes / seconds / 1e12


def estimate(files: Path, size: str, device: str, result: dict[str, Any]) -> None:
    """Predict the figures of the other parts, under their names."""
    gpu = _card(device)
    figures = result["figures"]
    result["gpu"] = gpu.name
    options = [*released.overrides(files, size), "model.precision=bf16"]
    for storage in ("bf16", "int8", "nf4"):
        quantised = [] if storage == "bf16" else [f"model.quantization={storage}"]
        cfg = load_config(released.configuration(size), [*options, *quantised])
        cfg = on_cpu(cfg) if device == "cpu" else cfg
        chat = plan_chat(cfg, meta_model(cfg), gpu)
        figures[f"{storage}: first token of a new clip, s"] = (
            chat.decoding_seconds + chat.first_token_seconds
        )
        figures[f"{storage}: tokens/s, eager"] = chat.tokens_per_second
        figures[f"{storage}: peak, GB"] = chat.memory.total / 1e9
        if storage == "bf16":
            figures["bf16: tokens/s, compiled"] = chat.compiled_tokens_per_second
    rows = 4 if size == "tiny" else 32
    for branch, name in (("video", "VL"), ("audio", "AL")):
        cfg = training.configuration(
            files, size, branch, 1, f"run.batch_size_train={rows}", "run.num_workers=1000"
        )
        cfg = on_cpu(cfg) if device == "cpu" else cfg
        model, one = meta_model(cfg), {"gpus": 1, "cores": 1000.0}
        for what, cached in (("", False), (", cached features", True)):
            plan = plan_training(cfg, model, gpu, features_cached=cached, **one)
            figures[f"{name} stage 1{what}: samples/s"] = plan.samples_per_second
            if not cached:
                figures[f"{name} stage 1: peak, GB"] = plan.memory.total / 1e9


def _card(device: str) -> Gpu:
    """Find the card in the estimate's table, by the words of its name."""
    if device == "cpu":
        return this_machine()
    name = torch.cuda.get_device_name().lower()
    memory = torch.cuda.get_device_properties(0).total_memory
    fitting = [gpu for gpu in GPUS.values() if gpu.name.split("-")[0] in name.replace(" ", "")]
    if not fitting:
        raise LookupError(f"{name} is not in estimate/hardware.yaml; add its data sheet")
    return min(fitting, key=lambda gpu: abs(gpu.memory - memory))


PARTS: dict[str, Callable[[Path, str, str, dict[str, Any]], None]] = {
    "limits": limits,
    **{f"answers_{name}": partial(answers.answers, name) for name in ("bf16", "int8", "nf4")},
    "greedy": answers.greedy,
    **{f"training_{name}": partial(training.training, name) for name in ("video", "audio")},
    "compiled_step": training.compiled_step,
    "packing": training.packing,
    "small_cards": training.small_cards,
    "from_disk": training.from_disk,
    "correctness": checks.correctness,
    "resume": checks.resume,
    "estimate": estimate,
}


def main() -> None:
    """Run one part, and write what it found, also where it fails."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("name", choices=[*PARTS])
    parser.add_argument("files", type=Path)
    parser.add_argument("--size", default="7b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--result", type=Path, required=True)
    args = parser.parse_args()
    result: dict[str, Any] = {"figures": {}}
    try:
        PARTS[args.name](args.files, args.size, args.device, result)
    finally:
        args.result.write_text(json.dumps(result, indent=1), "utf-8")


if __name__ == "__main__":
    main()
