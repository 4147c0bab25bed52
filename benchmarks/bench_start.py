"""How long it takes to get going, and what loading costs in memory.

    python -m benchmarks.bench_start [--repeats N] [--layers N]

Each command runs in a process of its own, in turns, so that a busy machine slows all of them alike:
* `python`: an interpreter that does nothing; `import`: `import video_llama`; `help`:
  `video-llama --help`; `estimate`: the planning tool on the shipped stage-1 YAML;
* `libraries`: importing torch and what else an answer needs, without a model;
* `read`: reading the weight files from front to back; `first_token`: from the command
  `video-llama ask` to its first token, with these files. Both after the files have been dropped
  from the system's memory (`cold`), and again (`warm`).

`memory` is the host memory that loading takes above that of the imported libraries, over the size
of the weights: the peak of everything resident, pages of the files included.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import yaml
from PIL import Image
from safetensors.torch import save_file

from benchmarks.harness import RESULTS, machine
from video_llama.common.io import default_config_path, package_file
from video_llama.config.load import load_config
from video_llama.models.build import build_video_llama
from video_llama.models.weights.load import targets_of

ROOT = Path(__file__).resolve().parent.parent
WIDTHS = {
    "image_size": 224,
    "vit_config": {"patch_size": 14, "embed_dim": 768, "depth": 12, "num_heads": 12},
    "equip_audio_branch": False,
    "random_init": False,
}
LLM = {
    "hidden_size": 1024,
    "intermediate_size": 2752,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "vocab_size": 700,
}
LIBRARIES = "import video_llama.chat.engine, video_llama.config.build"
MEMORY = """
import json, sys, torch
from pathlib import Path
from video_llama.config.build import build_model
from video_llama.config.load import load_config
import video_llama.chat.engine

def status(key):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key))

cfg = load_config(sys.argv[1], sys.argv[2:])
Path("/proc/self/clear_refs").write_text("5")
before = status("VmRSS")
model = build_model(cfg)
for parameter in model.parameters():
    parameter.sum()
weights = sum(parameter.nbytes for parameter in model.parameters())
print(json.dumps({"weights": weights, "peak": status("VmHWM") - before}))
"""


def write_model(folder: Path, layers: int) -> Path:
    """A model of random values in two files: the LLM's folder in bf16, the rest in fp32."""
    llama, tiny = folder / "llama", package_file("presets/tiny/llama")
    llama.mkdir()
    values = json.loads((tiny / "config.json").read_text()) | LLM | {"num_hidden_layers": layers}
    (llama / "config.json").write_text(json.dumps(values))
    (llama / "tokenizer.model").write_bytes((tiny / "tokenizer.model").read_bytes())
    content = yaml.safe_load(default_config_path().read_text())
    content["model"] |= {**WIDTHS, "llama_model": str(llama), "precision": "bf16"}
    content["model"] |= dict.fromkeys(("vit_ckpt", "q_former_model", "ckpt_2"))
    content["model"]["ckpt"] = str(folder / "rest.safetensors")
    content["model"].pop("imagebind_config")
    content["run"]["device"] = "cpu"
    for pictures in (e["vis_processor"]["train"] for e in content["datasets"].values()):
        pictures["image_size"] = WIDTHS["image_size"]
    path = folder / "model.yaml"
    path.write_text(yaml.safe_dump(content))
    shapes = targets_of(build_video_llama(load_config(path).model, device="meta", seed=0))
    prefix = "llama_model."
    halves = {n.removeprefix(prefix): p for n, p in shapes.items() if n.startswith(prefix)}
    save_file(
        {n: torch.randn(p.shape, dtype=torch.bfloat16) * 0.02 for n, p in halves.items()},
        llama / "model.safetensors",
        {"format": "pt"},
    )
    rest = {n: torch.randn(p.shape) * 0.02 for n, p in shapes.items() if not n.startswith(prefix)}
    save_file(rest, folder / "rest.safetensors")
    Image.new("RGB", (224, 224), "red").save(folder / "picture.png")
    return path


def drop(paths: list[Path]) -> None:
    """Take files out of the system's memory."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def run(*arguments: str) -> float:
    """Seconds of a Python process."""
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def read(paths: list[Path]) -> float:
    """Seconds to read files from front to back."""
    start = time.perf_counter()
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(1 << 24):
                pass
    return time.perf_counter() - start


def first_token(config: Path, picture: Path) -> float:
    """Seconds from the command to its first sign of an answer."""
    start = time.perf_counter()
    command = ["-m", "video_llama.apps.cli.main", "ask", str(picture), "What is it?"]
    command += ["--cfg-path", str(config), "--max-new-tokens", "1"]
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    return time.perf_counter() - start


def cold(function: Callable[[], float], paths: list[Path]) -> float:
    drop(paths)
    return function()


def memory(config: Path, *overrides: str) -> dict[str, float]:
    command = [sys.executable, "-c", MEMORY, str(config), *overrides]
    found = subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True)
    numbers = json.loads(found.stdout)
    return {
        "weights_mb": round(numbers["weights"] / 1e6),
        "peak_mb": round(numbers["peak"] / 1e6),
        "ratio": round(numbers["peak"] / numbers["weights"], 3),
    }


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--layers", type=int, default=40, help="of the language model")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        config = write_model(folder, args.layers)
        files = sorted(folder.rglob("*.safetensors"))
        answer = partial(first_token, config, folder / "picture.png")
        ways: dict[str, Callable[[], float]] = {
            "python": partial(run, "-c", ""),
            "import": partial(run, "-c", "import video_llama"),
            "help": partial(run, "-m", "video_llama.apps.cli.main", "--help"),
            "estimate": partial(
                run,
                "-m",
                "video_llama.apps.cli.main",
                "estimate",
                "train_configs/visionbranch_stage1_pretrain.yaml",
            ),
            "libraries": partial(run, "-c", LIBRARIES),
            "read_cold": partial(cold, partial(read, files), files),
            "first_token_cold": partial(cold, answer, files),
            "read_warm": partial(read, files),
            "first_token_warm": answer,
        }
        times: dict[str, list[float]] = {name: [] for name in ways}
        for number in range(args.repeats + 1):
            for name, way in ways.items():
                seconds = way()
                if number:  # the first round warms up
                    times[name].append(seconds)
        content: dict[str, Any] = {
            "machine": {**machine("cpu"), "load": round(os.getloadavg()[0], 1)},
            "files_mb": round(sum(path.stat().st_size for path in files) / 1e6),
            "median_seconds": {n: round(statistics.median(t), 3) for n, t in times.items()},
            "seconds": times,
            "memory": {
                "as in the files": memory(config),
                "encoders converted to bf16": memory(config, "model.vit_precision=bf16"),
                "language model converted to fp32": memory(config, "model.precision=fp32"),
            },
        }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "start.json").write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
