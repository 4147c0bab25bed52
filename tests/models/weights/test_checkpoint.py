"""What a branch file holds, and that it brings the branch back."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest
import torch

from tests.golden_model import build_golden, golden, golden_model
from tests.tiny_chat import tiny_model
from video_llama.common.io import DiskFullError
from video_llama.models.settings import Branch
from video_llama.models.video_llama import VideoLlama
from video_llama.models.weights.files import open_weights
from video_llama.models.weights.save import (
    Manifest,
    describe_branch,
    save_branch,
    save_pickle,
    save_tensors,
)


def manifest_of(model: VideoLlama, stage: int = 2) -> Manifest:
    llm = model.language_model.config
    return describe_branch(model.settings, llm, stage=stage, frames=8, clips=4, step=100)


@pytest.mark.parametrize("branch", ["video", "audio"])
def test_a_branch_file_holds_what_is_trained_and_nothing_else(
    tmp_path: Path, branch: Branch
) -> None:
    model = golden_model(branch)
    save_branch(model.trainable_parameters(), tmp_path / "branch.safetensors", manifest_of(model))
    file = open_weights(tmp_path / "branch.safetensors")
    trained = dict(model.trainable_parameters())
    assert file.shapes == {name: tuple(p.shape) for name, p in trained.items()}
    assert all(torch.equal(file.tensor(name), trained[name]) for name in trained)
    assert {name for name in golden().parameters if name in file.shapes} == set(file.shapes)
    assert Manifest.of_file(file) == manifest_of(model)


def test_a_branch_comes_back(tmp_path: Path) -> None:
    trained = build_golden("video")
    with torch.no_grad():
        for _, parameter in trained.trainable_parameters():
            parameter.add_(1.0)
    path = tmp_path / "branch.safetensors"
    save_branch(trained.trainable_parameters(), path, manifest_of(trained))
    loaded = build_golden(None, template="vicuna", ckpt_2=str(path))
    video = golden().input("encode_video/image1/in_image")
    with torch.no_grad():
        assert torch.equal(loaded.encode_video(video), trained.eval().encode_video(video))
    assert loaded.load_reports[-1].manifest == manifest_of(trained)


def test_training_goes_on_in_memory_of_its_own(tmp_path: Path) -> None:
    model = tiny_model("model.frozen_video_Qformer=false")
    path = tmp_path / "branch.safetensors"
    save_branch(model.trainable_parameters(), path, manifest_of(model))
    before = path.read_bytes()
    again = tiny_model("model.frozen_video_Qformer=false", f"model.ckpt={path}")
    with torch.no_grad():
        for _, parameter in again.trainable_parameters():
            parameter.zero_()
    assert path.read_bytes() == before


def test_tensors_that_share_memory_are_saved(tmp_path: Path) -> None:
    whole = torch.arange(12.0).reshape(3, 4)
    tensors = {
        "whole": whole,
        "tied": whole,
        "row": whole[1],
        "turned": whole.T,
        "expanded": torch.ones(()).expand(2, 3),
        "empty": torch.zeros(0),
        "number": torch.tensor(3.0, requires_grad=True),
    }
    save_tensors(tensors, tmp_path / "a.safetensors", {"format": "pt"})
    file = open_weights(tmp_path / "a.safetensors")
    assert file.shapes.keys() == tensors.keys()
    assert all(torch.equal(file.tensor(name), tensors[name]) for name in tensors)


@pytest.mark.parametrize("name", ["a.safetensors", "a.pth"])
def test_a_full_disk_keeps_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(b"old")

    def fail(content: object, file: object, *rest: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("video_llama.models.weights.save.save_file", fail)
    monkeypatch.setattr(torch, "save", fail)
    save = partial(save_pickle, {}) if path.suffix == ".pth" else partial(save_tensors, {})
    with pytest.raises(DiskFullError, match="no room for"):
        save(path=path, **({} if path.suffix == ".pth" else {"metadata": {}}))
    assert [entry.name for entry in tmp_path.iterdir()] == [name]
    assert path.read_bytes() == b"old"
