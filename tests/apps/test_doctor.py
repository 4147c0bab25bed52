"""`doctor`: one line for each thing that is wrong, with its cause and its mend."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.config.broken_configs import AT_A_GLANCE, WITH_TORCH, training, write_yaml
from tests.random_tiny import random_tiny
from tests.reference import ROOT
from tests.tiny_chat import Run, tiny_model
from video_llama.apps.doctor import path_problems
from video_llama.common.io import default_config_path, package_file
from video_llama.config.load import load_config
from video_llama.models.weights.checks import LFS_MARK


@pytest.mark.parametrize("case", [*AT_A_GLANCE, *WITH_TORCH])
def test_each_problem_is_one_line_with_cause_and_mend(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, case: str
) -> None:
    make, message = {**AT_A_GLANCE, **WITH_TORCH}[case]
    path = write_yaml(tmp_path / "broken.yaml", make(tmp_path))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    if case in AT_A_GLANCE:
        # Nothing that imports torch may be looked for.
        monkeypatch.setitem(sys.modules, "video_llama.apps.doctor_shapes", None)
    status, output, errors = run("doctor", path)
    assert len(errors.splitlines()) == 1, errors
    assert re.match(f"error: .*{message}", errors)
    assert (status, output) == (1, "")


def test_problems_of_paths_are_found_without_torch(tmp_path: Path) -> None:
    path = write_yaml(tmp_path / "broken.yaml", training(tmp_path, **{"model.ckpt": "no.pth"}))
    code = f"""
import sys
from video_llama.apps.cli.main import main
assert main(["doctor", {str(path)!r}]) == 1
heavy = {{"torch", "transformers", "pyarrow", "av", "decord", "rich"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stderr.startswith("error: model.ckpt: no.pth does not exist")


def test_a_folder_of_weights_is_shown_with_what_each_file_is(run: Run, tmp_path: Path) -> None:
    shutil.copytree(package_file("presets/tiny/llama"), tmp_path / "decoder")
    for name, other in {"eva": "1", "qformer": "2", "imagebind": "3", "video_branch": "4"}.items():
        shutil.copy(package_file(f"presets/tiny/{name}.safetensors"), tmp_path / other)
    (tmp_path / "audio.pth").write_bytes(LFS_MARK + b"/spec/v1")
    status, output, errors = run("doctor", "--weights", tmp_path)
    rows = [[cell.strip() for cell in line.split("│")[1:3]] for line in output.splitlines()]
    assert [row for row in rows if any(row)] == [
        ["language model", "decoder"],
        ["vision transformer", "1"],
        ["frame Q-Former", "2"],
        ["ImageBind", "3"],
        ["video branch", "4"],
    ]
    assert f"not usable: {tmp_path / 'audio.pth'} is a Git-LFS pointer" in output
    assert status == 1
    assert "no audio branch (released as AL_LLaMA_2_7B_Finetuned.pth, from https" in errors
    shutil.copy(package_file("presets/tiny/audio_branch.safetensors"), tmp_path / "audio.pth")
    status, output, errors = run("doctor", "--weights", tmp_path)
    assert (errors, status) == ("", 0)
    assert output.endswith("no problem found\n")


def test_every_problem_of_the_paths_has_its_line(run: Run, tmp_path: Path) -> None:
    changes = {"model.ckpt": "a.pth", "model.ckpt_2": "b.pth", "model.vit_ckpt": str(tmp_path)}
    status, _, errors = run("doctor", write_yaml(tmp_path / "broken.yaml", changes))
    assert status == 1
    assert [line.split(": ")[1] for line in errors.splitlines()] == [
        "model.vit_ckpt",
        "model.ckpt",
        "model.ckpt_2",
    ]


def test_a_missing_package_is_named(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    path = write_yaml(tmp_path / "nf4.yaml", {"model.quantization": "nf4"})
    status, _, errors = run("doctor", path)
    assert (status, errors) == (
        1,
        "error: model.quantization: nf4 needs bitsandbytes; pip install 'video-llama[quant]'\n",
    )


def test_a_good_configuration_gets_a_table(run: Run) -> None:
    status, output, errors = run("doctor", random_tiny())
    assert (errors, status) == ("", 0)
    assert output.endswith(f"{random_tiny()}: no problem found\n")
    parameters = sum(p.numel() for p in tiny_model().parameters())
    assert f"{parameters:,}" in output
    for part, _ in tiny_model().named_children():
        assert part in output


def test_a_good_training_configuration_counts_the_optimiser(run: Run, tmp_path: Path) -> None:
    status, output, errors = run("doctor", write_yaml(tmp_path / "t.yaml", training(tmp_path)))
    assert (errors, status) == ("", 0)
    model = tiny_model("model.frozen_video_Qformer=false")
    trained = sum(p.numel() for _, p in model.trainable_parameters())
    assert re.search(rf"gradients, AdamW +│ fp32 +│ +{trained:,} ", output)


def test_a_pipe_given_as_weights_is_called_one(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    cfg = load_config(default_config_path(), [f"model.ckpt={tmp_path / 'pipe.pth'}"])
    (problem,) = path_problems(cfg)
    assert re.search("device|pipe", problem)
    assert "does not exist" not in problem
