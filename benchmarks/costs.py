"""Cost against size, by estimate: the tables of docs/speed.md."""

from __future__ import annotations

from functools import cache

from video_llama.apps.estimate.hardware import GPUS
from video_llama.apps.estimate.measure import meta_model
from video_llama.apps.estimate.plan import TrainingPlan, communication, plan_training
from video_llama.common.io import resource
from video_llama.config.load import load_config
from video_llama.config.schema import Config
from video_llama.models.video_llama import VideoLlama

GPU, CORES, BATCH = "a100-80g", 16, 32
FRAMES, BATCHES, WORLDS = (1, 2, 4, 8, 16, 32), (1, 2, 4, 8, 16, 32, 64), (1, 2, 4, 8, 16, 32, 64)


def _configuration(*options: str) -> Config:
    path = resource("train_configs/visionbranch_stage1_pretrain.yaml")
    return load_config(path, ["datasets.cc_sbu_align=null", *options])


@cache
def _model(size: str) -> VideoLlama:
    return meta_model(_configuration(), size)


@cache
def plan(
    *, frames: int = 8, batch: int = BATCH, size: str = "7b", cached: bool = False
) -> TrainingPlan:
    """Plan stage 1 of the video branch, clips alone, on one GPU."""
    cfg = _configuration(
        f"datasets.webvid.vis_processor.train.n_frms={frames}",
        f"run.batch_size_train={batch}",
        f"run.num_workers={CORES}",
    )
    options = {"gpus": 1, "cores": CORES, "features_cached": cached}
    return plan_training(cfg, _model(size), GPUS[GPU], **options)


def markdown() -> str:
    """Set frames, batch and GPUs against samples per second and memory."""
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
    volume, waiting = communication(
        _configuration(), _model("7b"), GPUS[GPU], gpus=gpus, hidden_behind=0.0
    )

    def samples_per_second(one: TrainingPlan) -> float:
        busy = one.compute_seconds + one.memory_seconds + one.launch_seconds
        return gpus * BATCH / max(busy + waiting, one.loading_seconds)

    linear = samples_per_second(plan()) / gpus / plan().samples_per_second
    return [
        str(gpus),
        f"{samples_per_second(plan()):,.0f}",
        f"{volume / 1e6:.0f}",
        f"{linear:.1%}",
        f"{samples_per_second(plan(cached=True)):,.0f}",
    ]


def _table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *lines])


if __name__ == "__main__":
    print(markdown())
