"""Training on one device: steps against the reference, packing, small cards, data from disk."""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks import bench_train, released
from benchmarks.gpu.answers import peak_gb, synchronize
from benchmarks.harness import compare, timed
from video_llama.common.io import resource
from video_llama.config.load import load_config
from video_llama.config.schema import Config
from video_llama.models.build import build_video_llama, compile_blocks
from video_llama.models.language_model import causal_loss
from video_llama.models.llama_training import allow_packing
from video_llama.models.video_llama import VideoLlama
from video_llama.types import CaptionBatch

ROOT = Path(__file__).resolve().parent.parent.parent


def configuration(files: Path, size: str, branch: str, stage: int, *options: str) -> Config:
    """Load a training configuration with the released files, as on a card with bf16."""
    kind = {1: "pretrain", 2: "finetune"}[stage]
    part = "visionbranch" if branch == "video" else "audiobranch"
    name = f"train_configs/{'tiny/' if size == 'tiny' else ''}{part}_stage{stage}_{kind}.yaml"
    # A branch starts from nothing, in stage 1 as in the benchmark of stage 2.
    chosen = [
        option
        for option in released.overrides(files, size)
        if not option.startswith(("model.ckpt", "model.llama_proj_model"))
    ]
    chosen += ["model.ckpt=null", "model.ckpt_2=null", "model.random_init=true"]
    if size != "tiny":
        names = ("precision", "vit_precision", "imagebind_precision")
        chosen += [f"model.{name}=bf16" for name in names]
    return load_config(resource(name), [*chosen, *options])


def model_of(cfg: Config, device: str) -> VideoLlama:
    """Build the model in training mode."""
    return build_video_llama(cfg.model, device=device, seed=0).train()


def captions(cfg: Config, rows: int, device: str, *, frames: int = 8) -> CaptionBatch:
    """Return a batch of random clips with captions."""
    side = cfg.model.image_size
    video = torch.randn(rows, 3, frames, side, side, generator=torch.Generator().manual_seed(0))
    return CaptionBatch(captions=[bench_train.CAPTION] * rows, pixel_values=video).to(device)


def training(branch: str, files: Path, size: str, device: str, result: dict[str, Any]) -> None:
    """Measure steps of stage 1: plain and from cached features, beside the reference."""
    cfg = configuration(files, size, branch, 1)
    rows, repeats = (4, 1) if size == "tiny" else (32, 3)
    figures, name = result["figures"], "VL" if branch == "video" else "AL"
    model, batch = model_of(cfg, device), captions(cfg, rows, device)
    with torch.no_grad():
        features = model.frozen_features(batch)
    cached = replace(batch, pixel_values=None, features=features)
    theirs = partial(bench_train.original_step, model, batch)
    run = partial(compare, repeats=repeats, device=device)
    step = run(f"{name} step", partial(bench_train.our_step, model, batch), theirs)
    if device == "cuda":
        figures[f"{name} stage 1: peak, GB"] = peak_gb()
    fast = run(f"{name} cached", partial(bench_train.our_step, model, cached), theirs)
    for what, found in (("", step), (", cached features", fast)):
        figures[f"{name} stage 1{what}: samples/s"] = rows / found.ours.median
        figures[f"{name} stage 1{what}: times the reference"] = found.speedup
    with FlopCounterMode(display=False) as counter:
        bench_train.our_step(model, batch)
    result["operations"] = {f"{name} stage 1: samples/s": counter.get_total_flops() / rows}


def compiled_step(files: Path, size: str, device: str, result: dict[str, Any]) -> None:
    """Measure steps of the video branch with compiled blocks, and that no new shape recompiles."""
    cfg = configuration(files, size, "video", 1)
    model, rows = model_of(cfg, device), 4 if size == "tiny" else 32
    compile_blocks(model, ["vision_encoder", "qformers", "language_model"])
    for caption in (bench_train.CAPTION, bench_train.CAPTION * 2):
        batch = replace(captions(cfg, rows, device), captions=[caption] * rows)
        bench_train.our_step(model, batch)
    # The second length was the last that may compile: the third runs what there is.
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    batch = replace(batch, captions=[f"{bench_train.CAPTION} and on"] * rows)
    times = [timed(partial(bench_train.our_step, model, batch), device)[0] for _ in range(3)]
    result["figures"]["VL stage 1, compiled: samples/s"] = rows / statistics.median(times)
    if torch._dynamo.utils.counters["stats"]["unique_graphs"] != graphs:
        raise AssertionError("another length of text was compiled anew")


def packing(files: Path, size: str, device: str, result: dict[str, Any]) -> None:
    """Measure conversations packed into one row against rows padded to the longest."""
    model = model_of(configuration(files, size, "video", 1), device)
    embeddings, labels, mask = bench_train.text_batch(model, 64 if size == "tiny" else 512)
    labels = labels.clamp(max=model.language_model.config.vocab_size - 1)

    def step() -> None:
        rows = embeddings.detach().requires_grad_()
        causal_loss(model.language_model, rows, labels, mask)[0].backward()

    step()
    padded = min(timed(step, device)[0] for _ in range(3))
    allow_packing(model.language_model)
    step()
    packed = min(timed(step, device)[0] for _ in range(3))
    result["figures"]["packing: times as fast as padded"] = padded / packed


def small_cards(files: Path, size: str, device: str, result: dict[str, Any]) -> None:
    """Take a step within the memory of a small card: stage 1 in 24 GB, stage 2 in nf4 in 16 GB."""
    for stage, gigabytes, options in ((1, 24, []), (2, 16, ["model.quantization=nf4"])):
        quantised = options if size != "tiny" else []
        cfg = configuration(files, size, "video", stage, *quantised)
        if device == "cuda":
            total = torch.cuda.get_device_properties(0).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, gigabytes * 1e9 / total))
            torch.cuda.reset_peak_memory_stats()
        model = model_of(cfg, device)
        bench_train.our_step(model, captions(cfg, 4, device))
        synchronize(device)
        if device == "cuda":
            result["figures"][f"stage {stage} at batch 4: peak, GB"] = peak_gb()
        del model


def from_disk(files: Path, size: str, device: str, result: dict[str, Any]) -> None:
    """Run train.py on made clips with all cores decoding, and read its own figures."""
    tiny = size == "tiny"
    made = world(files.parent / "world", clips=16 if tiny else 256, side=96 if tiny else 224)
    cfg = configuration(files, size, "video", 1)
    keys = ("llama_model", "vit_ckpt", "q_former_model", "precision", "vit_precision")
    options = [
        *options_of_run(made, device),
        f"run.output_dir={files.parent / 'run'}",
        f"run.iters_per_epoch={6 if tiny else 40}",
        f"run.batch_size_train={4 if tiny else 32}",
        f"run.num_workers={1 if tiny else 14}",
        f"run.log_every={1 if tiny else 10}",
        *(f"model.{key}={getattr(cfg.model, key)}" for key in keys),
        "model.llama_proj_model=null",
        "model.random_init=true",
    ]
    printed = checked(train_command(size, options))
    # The last line of the log says how long the steps before it waited for data.
    found = re.findall(r"([\d.,]+) samples/s, waiting for data (\d+)%", printed)
    if not found:
        raise AssertionError(f"no figures in the log: {printed[-1500:]}")
    rate, waiting = found[-1]
    result["figures"]["from disk: samples/s"] = float(rate.replace(",", ""))
    result["figures"]["from disk: share of time waiting for data"] = int(waiting) / 100


def world(folder: Path, *, clips: int, side: int) -> Path:
    """Make clips with captions."""
    command = [sys.executable, "-m", "video_llama.apps.cli.main", "data", "synth"]
    command += ["--out", str(folder), "--num-clips", str(clips), "--split", "train"]
    checked([*command, "--size", str(side)])
    return folder


def options_of_run(made: Path, device: str) -> list[str]:
    """Return the options of a run of one epoch on made clips alone."""
    info = "datasets.webvid.build_info"
    return [
        f"{info}.anno_dir={made / 'train/webvid'}",
        f"{info}.videos_dir={made / 'train/clips'}",
        "datasets.cc_sbu_align=null",
        "run.max_epoch=1",
        "run.feature_cache=null",
        f"run.device={device}",
    ]


def train_command(size: str, options: list[str]) -> list[str]:
    """Return the command that trains stage 1 of the video branch."""
    kind = "tiny/" if size == "tiny" else ""
    path = resource(f"train_configs/{kind}visionbranch_stage1_pretrain.yaml")
    return [sys.executable, "train.py", "--cfg-path", str(path), "--options", *options]


def checked(command: list[str]) -> str:
    """Run a command; return what it prints.

    Raises:
        RuntimeError: its exit status is not 0.
    """
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{json.dumps(command[:6])}: {done.stderr[-1500:]}")
    return done.stdout + done.stderr
