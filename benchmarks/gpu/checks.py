"""What must be right on a device: answers and gradients of the CPU, a training, a killed run."""

from __future__ import annotations

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from benchmarks.bench_train import our_step
from benchmarks.gpu import answers, training
from video_llama.chat.engine import Chat
from video_llama.common.io import default_config_path
from video_llama.config.build import build_model
from video_llama.config.load import load_config

QUESTIONS = ("What do you see?", "What do you hear?", "Which colour is it?")
TOLERANCE = 1e-3
"""Largest difference of a loss or a gradient in fp32, relative to the largest value."""
STEPS, SAVE_EVERY = 24, 8
"""Updates of a run that is killed, and of how many a checkpoint is the last."""
KILL_AFTER = 12


def correctness(files: Path, size: str, device: str, result: dict[str, Any]) -> None:
    """Compare answers, gradients and a short training of the tiny preset with the CPU's."""
    clip = answers.clip_of(files.parent / "clips_correctness")
    places = ("cpu", device)
    texts = {place: _answers(clip, place) for place in dict.fromkeys(places)}
    result["answers"] = texts
    equal = sum(a == b for a, b in zip(texts["cpu"], texts[device], strict=True))
    result["figures"]["correctness: answers equal to the CPU's"] = equal / len(QUESTIONS)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for what, steps in (("gradient after one step", 1), ("weight after 20 updates", 20)):
        ours, theirs = (_trained(place, steps) for place in places)
        largest = max(float(value.abs().max()) for value in ours.values())
        off = max(float((theirs[name] - value).abs().max()) for name, value in ours.items())
        result["figures"][f"correctness: largest difference of a {what}"] = off / largest
        if off > TOLERANCE * largest:
            raise AssertionError(f"{what}: {off / largest:.2g} of the largest value apart")


def _answers(clip: Path, device: str) -> list[str]:
    chat = Chat(build_model(load_config(default_config_path(), [f"run.device={device}"])))
    texts = []
    for question in QUESTIONS:
        with chat.start(video=clip) as session:
            texts.append("".join(session.ask(question, temperature=0.0)))
    return texts


def _trained(device: str, steps: int) -> dict[str, Tensor]:
    """Return the gradients of one batch, or the weights after some updates on it."""
    options = ["model.frozen_video_Qformer=false", "model.frozen_llama_proj=false"]
    cfg = load_config(default_config_path(), options)
    # Without dropout, which draws other numbers on another device.
    model = training.model_of(cfg, device).eval()
    batch = training.captions(cfg, 2, device, frames=4)
    trained = dict(model.trainable_parameters())
    # Plain gradient descent: AdamW divides by gradients near 0, and so enlarges rounding.
    optimizer = torch.optim.SGD(trained.values(), lr=0.01)
    for _ in range(steps - 1):
        our_step(model, batch)
        optimizer.step()
    our_step(model, batch)
    if steps == 1:
        return {name: p.grad.cpu() for name, p in trained.items() if p.grad is not None}
    optimizer.step()
    return {name: p.detach().cpu() for name, p in trained.items()}


def resume(files: Path, size: str, device: str, result: dict[str, Any]) -> None:
    """Kill a training of the tiny preset, resume it, and compare it with one that ran through.

    Batches, dropout and learning rates are the same in any case. On a GPU, kernels that add up in
    no fixed order (attention's backward pass) may leave the last bits of the weights different.
    """
    folder = files.parent / "resumed"
    options = training.options_of_run(training.world(folder / "world", clips=16, side=96), device)
    options += [f"run.iters_per_epoch={STEPS}", "run.batch_size_train=4", "run.num_workers=1"]
    options += [f"run.save_every={SAVE_EVERY}", "run.log_every=1"]
    finished = []
    for name, killed in (("whole", False), ("killed", True)):
        output = folder / name
        chosen = [*options, f"run.output_dir={output}"]
        if killed:
            _kill_midway(training.train_command("tiny", chosen), output)
            chosen.append("run.resume_ckpt_path=latest")
        training.checked(training.train_command("tiny", chosen))
        finished.append(load_file(max(output.rglob("branch.safetensors"))))
    whole, resumed = finished
    off = max(float((whole[name] - resumed[name]).abs().max()) for name in whole)
    result["figures"]["resumed after a kill: largest difference of a weight"] = off
    result["equal to the bit"] = off == 0
    if off > TOLERANCE:
        raise AssertionError(f"a resumed run ends {off:.2g} away from one that ran through")


def _kill_midway(command: list[str], output: Path) -> None:
    """Start a run and kill it between two checkpoints."""
    with subprocess.Popen(
        command, cwd=training.ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        while process.poll() is None and _step_of(output) < KILL_AFTER:
            time.sleep(0.02)
        if process.poll() is not None:
            raise AssertionError(f"the run ended with status {process.returncode} before the kill")
        process.kill()


def _step_of(output: Path) -> int:
    for log in output.rglob("log.jsonl"):
        whole_lines = [line for line in log.read_text("utf-8").splitlines(keepends=True)][-2:]
        steps = [json.loads(line).get("step", 0) for line in whole_lines if line.endswith("\n")]
        return max(steps, default=0)
    return 0
