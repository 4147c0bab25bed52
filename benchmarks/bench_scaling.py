"""Training with one and with two processes, and what they send to each other.

    python -m benchmarks.bench_scaling [--rounds N] [--steps N]

The tiny preset's video branch trains on random clips through DistributedDataParallel (gloo), one
thread per process, one and two processes in turns. Bytes are counted in the gradients that are
handed to the exchange; a ring sends 2 (N - 1) / N of them from each of N processes, which is
compared with the estimate's communication volume.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from benchmarks.harness import RESULTS, machine
from video_llama.apps.estimate.hardware import GPUS
from video_llama.apps.estimate.measure import meta_model
from video_llama.apps.estimate.plan import communication
from video_llama.common.io import default_config_path
from video_llama.config.load import load_config
from video_llama.config.schema import Config
from video_llama.models.build import build_video_llama
from video_llama.runners.task import TASKS, TrainedPart
from video_llama.types import CaptionBatch

ROWS, FRAMES = 8, 8
OVERRIDES = [
    "model.frozen_video_Qformer=false",
    "model.frozen_llama_proj=false",
    "model.equip_audio_branch=false",
    f"run.batch_size_train={ROWS}",
]


def configuration() -> Config:
    return load_config(default_config_path(), OVERRIDES)


def work(rank: int, world: int, port: int, steps: int, found: Any) -> None:
    """One process: a few steps, then its seconds per step and bytes per step."""
    torch.set_num_threads(1)
    cfg = configuration()
    address = f"tcp://127.0.0.1:{port}"
    dist.init_process_group("gloo", init_method=address, rank=rank, world_size=world)
    model = build_video_llama(cfg.model, device="cpu", seed=0)
    task = TASKS.get("video_text_pretrain")(model, lambda batch, length: [])
    trained = [parameter for _, parameter in model.trainable_parameters()]
    part = DistributedDataParallel(TrainedPart(task, trained), gradient_as_bucket_view=True)
    counted = [0]

    def count(group, bucket):  # type: ignore[no-untyped-def]  # it reads annotations, not as text
        counted[0] += bucket.buffer().nbytes
        return allreduce_hook(group, bucket)

    part.register_comm_hook(None, count)
    optimizer = torch.optim.AdamW(trained)
    side = cfg.model.image_size
    pixels = torch.randn(ROWS, 3, FRAMES, side, side)
    batch = CaptionBatch(pixel_values=pixels, captions=["a red ball rolls"] * ROWS, prompt=None)
    times = []
    for step in range(steps + 2):
        if step == 2:
            counted[0] = 0
        dist.barrier()
        start = time.perf_counter()
        part(batch).backward()
        optimizer.step()
        optimizer.zero_grad()
        times.append(time.perf_counter() - start)
    dist.destroy_process_group()
    if rank == 0:
        found.put((statistics.median(times[2:]), counted[0] / steps))


def run(world: int, steps: int) -> tuple[float, float]:
    """Seconds and gradient bytes of a step with so many processes."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    found = mp.get_context("spawn").SimpleQueue()
    mp.spawn(work, args=(world, port, steps, found), nprocs=world)
    seconds, counted = found.get()
    return seconds, counted


def main() -> None:
    """Measure and write the result file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=8)
    args = parser.parse_args()
    found: dict[int, list[tuple[float, float]]] = {1: [], 2: []}
    for _ in range(args.rounds):
        for world in found:
            found[world].append(run(world, args.steps))
    cfg = configuration()
    model = meta_model(cfg)
    rows = []
    for world, values in found.items():
        seconds = statistics.median(value for value, _ in values)
        options = {"gpus": world, "hidden_behind": 0.0}
        predicted, _ = communication(cfg, model, GPUS["a100-80g"], **options)
        rows.append(
            {
                "processes": world,
                "seconds": [value for value, _ in values],
                "samples_per_second": world * ROWS / seconds,
                "gradient_bytes": values[0][1],
                "sent_bytes": 2 * (world - 1) / world * values[0][1],
                "predicted_bytes": predicted,
            }
        )
    where = {**machine("cpu"), "threads": 1, "load": round(os.getloadavg()[0], 1)}
    content = {"machine": where, "rows": ROWS, "frames": FRAMES, "processes": rows}
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "scaling.json").write_text(json.dumps(content, indent=1) + "\n")
    print(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
