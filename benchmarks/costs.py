"""Cost against size, by estimate: the tables of docs/speed.md. Needs no torch."""

from __future__ import annotations

from video_llama.apps.estimate.hardware import GPUS, gpu_rates
from video_llama.apps.estimate.shapes import llama_of
from video_llama.apps.estimate.training import TrainingPlan, plan_training
from video_llama.common.io import resource
from video_llama.config.load import load_config

GPU, CORES = "a100-80g", 16
FRAMES, BATCHES, WORLDS = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 16, 32, 64)


def plan(
    *, frames: int = 8, batch: int = 32, size: str = "7b", gpus: int = 1, cached: bool = False
) -> TrainingPlan:
    """Stage 1 of the video branch, clips alone."""
    options = [
        f"datasets.webvid.vis_processor.train.n_frms={frames}",
        "datasets.cc_sbu_align=null",
        f"run.batch_size_train={batch}",
        f"run.num_workers={CORES}",
    ]
    cfg = load_config(resource("train_configs/visionbranch_stage1_pretrain.yaml"), options)
    llama, gpu = llama_of(cfg.model.llama_model, size), GPUS[GPU]
    rates = gpu_rates(gpu)
    return plan_training(
        cfg, llama, gpu, rates, gpus=gpus, cores=CORES, features_cached=cached or None
    )


def markdown() -> str:
    """Frames, batch and GPUs against samples per second and memory."""
    by_frames = [
        [str(frames), *(_cell(plan(frames=frames, size=size)) for size in ("7b", "13b"))]
        for frames in FRAMES
    ]
    by_batch = [
        [str(batch), *(_cell(plan(batch=batch, size=size)) for size in ("7b", "13b"))]
        for batch in BATCHES
    ]
    by_gpus = [_scaled(gpus) for gpus in WORLDS]
    sizes = ["7B: samples/s, GB", "13B: samples/s, GB"]
    return "\n\n".join(
        [
            "Frames of a clip, batch 32, one GPU:\n\n" + _table(["frames", *sizes], by_frames),
            "Batch, 8 frames, one GPU:\n\n" + _table(["batch", *sizes], by_batch),
            "GPUs, 7B, 8 frames, batch 32 on each:\n\n"
            + _table(
                ["GPUs", "samples/s", "MB sent by each", "of linear", "from the feature cache"],
                by_gpus,
            ),
        ]
    )


def _cell(found: TrainingPlan) -> str:
    fits = "" if found.fits else " (does not fit)"
    return f"{found.samples_per_second:.1f}, {found.memory.total / 1e9:.0f}{fits}"


def _scaled(gpus: int) -> list[str]:
    one, many = plan(), plan(gpus=gpus)
    linear = many.samples_per_second / gpus / one.samples_per_second
    cached = plan(gpus=gpus, cached=True)
    return [
        str(gpus),
        f"{many.samples_per_second:,.0f}",
        f"{many.communication_bytes / 1e6:.0f}",
        f"{linear:.1%}",
        f"{cached.samples_per_second:,.0f}",
    ]


def _table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *lines])


if __name__ == "__main__":
    print(markdown())
