"""What `train.py` trains, what it leaves alone, and that `video-llama ask` takes what it saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import train
from tests.media import write_video
from tests.training.training_data import branch, run_folder, write_data
from video_llama.apps.cli.main import main
from video_llama.common.io import default_config_path
from video_llama.config import build, build_run
from video_llama.config.build import build_model
from video_llama.config.load import load_config
from video_llama.models.video_llama import VideoLlama
from video_llama.runners.checkpoints import Checkpoint

STEPS = 3
UNFROZEN = {
    "video": ("model.frozen_video_Qformer=false", "model.frozen_llama_proj=false"),
    "audio": ("model.frozen_audio_Qformer=false",),
}
KEYS = {"video": "model.ckpt", "audio": "model.ckpt_2"}


def options(name: str, data: Path, output: Path) -> list[str]:
    """The tiny preset, which trains one branch on clips."""
    return [
        *UNFROZEN[name],
        f"datasets.webvid.build_info={{anno_dir: {data}/csv, videos_dir: {data}/clips}}",
        *("run.max_epoch=1", f"run.iters_per_epoch={STEPS}", "run.batch_size_train=2"),
        *("run.num_workers=0", "run.device=cpu", "run.init_lr=1e-2", f"run.output_dir={output}"),
    ]


def state_of(model: torch.nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    values = value.values() if isinstance(value, dict) else value
    return [t for v in values for t in tensors_in(v)] if isinstance(value, dict | list) else []


@pytest.mark.parametrize("name", ["video", "audio"])
def test_only_the_branch_trains_and_it_answers_in_ask(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, output = write_data(tmp_path / "data"), tmp_path / "runs"
    models: list[VideoLlama] = []

    def noted(*args: Any, **keys: Any) -> VideoLlama:
        models.append(build_model_of_run(*args, **keys))
        return models[-1]

    build_model_of_run = build_run.build_video_llama
    monkeypatch.setattr(build_run, "build_video_llama", noted)
    words = options(name, data, output)
    assert train.main(["--cfg-path", str(default_config_path()), "--options", *words]) == 0
    run = run_folder(output)
    trained = branch(run, STEPS)
    (model,) = models

    fresh = state_of(build_model(load_config(default_config_path(), words)))
    names = {n for n, p in model.named_parameters() if p.requires_grad}
    after = model.state_dict()
    assert names
    assert {n for n in fresh if not torch.equal(fresh[n], after[n])} == names
    assert trained == {n: p.detach().numpy().tobytes() for n, p in model.trainable_parameters()}
    checkpoint = Checkpoint.read(run / f"checkpoints/step-{STEPS:06d}")
    assert checkpoint is not None
    saved = sum(tensor.numel() for tensor in tensors_in(checkpoint.state()))
    own = sum(after[n].numel() for n in names)
    assert 2 * own <= saved <= 2 * own + len(names), "two moments, and a count for each tensor"

    asked = build.build_model
    monkeypatch.setattr(
        build, "build_model", lambda cfg, **_: models.append(asked(cfg)) or models[-1]
    )
    clip = write_video(tmp_path / "clip.mp4")
    file = checkpoint.path / "branch.safetensors"
    words = ["--max-new-tokens", "4", "--options", f"{KEYS[name]}={file}"]
    capsys.readouterr()
    assert main(["ask", str(clip), "What is it?", *words]) == 0
    loaded = models[-1].state_dict()
    assert {n: loaded[n].numpy().tobytes() for n in names} == {
        n: after[n].numpy().tobytes() for n in names
    }
