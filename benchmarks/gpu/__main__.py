"""Measure answers, training, reading and correctness on one GPU, beside the estimate.

    python -m benchmarks.gpu                          # 7B on a card, about ten minutes
    python -m benchmarks.gpu --quick                  # without the slower comparisons
    python -m benchmarks.gpu --size tiny --out DIR    # every part on a CPU: the rehearsal

Each part is a process with a time limit, so that a failure costs only itself. Results go to
`benchmarks/results/gpu_<card>.json`, or to the folder of `--out`.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

from benchmarks.harness import RESULTS, machine

PARTS = {
    "limits": 60,
    "answers_bf16": 240,
    "answers_int8": 150,
    "answers_nf4": 150,
    "greedy": 200,
    "training_video": 240,
    "training_audio": 240,
    "compiled_step": 240,
    "packing": 150,
    "small_cards": 150,
    "from_disk": 240,
    "correctness": 200,
    "resume": 200,
    "estimate": 120,
}
"""Part and its time limit, seconds."""
SLOW = {"answers_int8", "compiled_step", "greedy", "packing", "resume", "training_audio"}
"""Left out by `--quick`."""


def run_part(name: str, folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Run a part as a process; an error or the time limit becomes its result."""
    result, start = folder / f"{name}.json", time.perf_counter()
    command = [sys.executable, "-m", "benchmarks.gpu.parts", name, str(folder / "files")]
    command += ["--size", args.size, "--device", args.device, "--result", str(result)]
    print(f"{name} ...", flush=True)
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=PARTS[name], check=False
        )
        failed = "" if done.returncode == 0 else done.stderr.strip()[-2000:] or "no output"
    except subprocess.TimeoutExpired:
        failed = f"stopped after {PARTS[name]} s"
    content = json.loads(result.read_text("utf-8")) if result.exists() else {}
    if failed:
        content["error"] = failed
    content["seconds"] = round(time.perf_counter() - start, 1)
    print(f"{name}: {json.dumps(content)}", flush=True)
    return content


def table(parts: dict[str, dict[str, Any]], where: str) -> list[dict[str, str]]:
    """Return the lines for docs/speed.md: every figure beside the one that was estimated."""
    estimates = parts.get("estimate", {}).get("figures", {})
    rows = []
    for name, part in parts.items():
        if name == "estimate":
            continue
        for what, value in part.get("figures", {}).items():
            beside = f" (estimated {estimates[what]:.3g})" if what in estimates else ""
            rows.append({"what": what, "value": f"{value:.3g}{beside}", "measured": where})
    return rows


def shares(parts: dict[str, dict[str, Any]]) -> dict[str, float]:
    """Return what share of the card's measured limits the figures reach.

    Steps are held against its products (model-FLOPs utilisation: those of the forward and backward
    pass, counted by torch, nothing computed twice), eager and compiled decoding against reading the
    LLM's weights once per token.
    """
    figures = {k: v for part in parts.values() for k, v in part.get("figures", {}).items()}
    costs = [
        (parts_cost, limit)
        for part in parts.values()
        for parts_cost, limit in (
            (part.get("operations", {}), "card: products, TFLOP/s"),
            (part.get("bytes", {}), "card: memory, TB/s"),
        )
    ]
    return {
        name: figures[name] * cost / (figures[limit] * 1e12)
        for named, limit in costs
        for name, cost in named.items()
        if name in figures and limit in figures
    }


def main() -> int:
    """Make the files, run the parts, write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=("tiny", "7b", "13b"), default="7b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="leave out the slower comparisons")
    parser.add_argument("--parts", nargs="+", choices=[*PARTS], help="only these")
    parser.add_argument("--files", type=Path, help="where the weight files are made (/dev/shm)")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the result file")
    args = parser.parse_args()
    if args.device == "cpu" and args.out == RESULTS and args.size != "tiny":
        parser.error("no GPU: rehearse with --size tiny --out DIR")
    shared = Path("/dev/shm")
    root = args.files or (shared if args.device == "cuda" and shared.is_dir() else None)
    names = args.parts or [name for name in PARTS if not (args.quick and name in SLOW)]
    facts, chosen = machine(args.device), ["--size", args.size, "--device", args.device]
    with tempfile.TemporaryDirectory(dir=root) as name:
        folder, start = Path(name), time.perf_counter()
        written = subprocess.run(
            [sys.executable, "-m", "benchmarks.released", str(folder / "files"), *chosen],
            check=True,
            capture_output=True,
            text=True,
        )
        print(written.stdout, flush=True)
        files = {"seconds": round(time.perf_counter() - start, 1)}
        parts = {part: run_part(part, folder, args) for part in names}
    card = re.sub(r"\W+", "_", (facts["device"] or "cpu").lower()).strip("_")
    content = {
        "machine": facts,
        "size": args.size,
        "parts": {"files": files, **parts},
        "shares": shares(parts),
        "table": table(parts, f"{facts['device'] or 'CPU'}, {args.size}"),
    }
    args.out.mkdir(parents=True, exist_ok=True)
    path = args.out / f"gpu_{card}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
    failed = [part for part, result in parts.items() if "error" in result]
    print(f"written: {path}" + (f"; failed: {', '.join(failed)}" if failed else ""))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
