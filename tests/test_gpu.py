"""What only a GPU can show. Everything else is tested on the CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from benchmarks.bench_train import our_step
from benchmarks.gpu import checks, training
from video_llama.common.io import default_config_path
from video_llama.config.load import load_config
from video_llama.models.video_llama import VideoLlama

pytestmark = pytest.mark.gpu


@pytest.fixture
def model() -> VideoLlama:
    options = ["model.frozen_video_Qformer=false", "model.frozen_llama_proj=false"]
    return training.model_of(load_config(default_config_path(), options), "cuda")


def test_answers_and_gradients_are_those_of_the_cpu(tmp_path: Path) -> None:
    result: dict[str, dict[str, float]] = {"figures": {}}
    checks.correctness(tmp_path / "files", "tiny", "cuda", result)
    assert result["figures"]["correctness: answers equal to the CPU's"] == 1


def test_a_training_step_never_waits_for_the_device(model: VideoLlama) -> None:
    cfg = load_config(default_config_path(), [])
    batch = training.captions(cfg, 2, "cuda", frames=4)
    our_step(model, batch)
    torch.cuda.set_sync_debug_mode("error")
    try:
        our_step(model, batch)
    finally:
        torch.cuda.set_sync_debug_mode("default")
