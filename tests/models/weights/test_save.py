"""What a branch file says about itself, and which models it refuses."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from tests.golden_model import build_golden, golden, golden_model, golden_settings
from tests.tiny_chat import tiny_model
from video_llama.common.io import DiskFullError
from video_llama.models.settings import Branch
from video_llama.models.video_llama import VideoLlama
from video_llama.models.weights.files import open_weights
from video_llama.models.weights.save import (
    FORMAT,
    Manifest,
    describe_branch,
    frozen_hash,
    mismatch,
    save_branch,
    save_pickle,
    save_tensors,
)
from video_llama.types import WeightsError

LLM = LlamaConfig(hidden_size=64, num_hidden_layers=2)


def described(branch: Branch = "video", **changes: Any) -> Manifest:
    values = {"stage": 2, "frames": 8, "clips": 4, "step": 100, **changes}
    return describe_branch(golden_settings(branch), LLM, **values)


def test_a_manifest_says_what_was_trained() -> None:
    settings = golden_settings("audio")
    manifest = described("audio")
    assert (manifest.branch, manifest.stage, manifest.step) == ("audio", 2, 100)
    assert (manifest.llm_width, manifest.llm_layers, manifest.template) == (64, 2, "vicuna")
    assert (manifest.frames, manifest.clips) == (8, 4)
    assert manifest.num_branch_query_token == settings.num_audio_query_token
    assert described("video").num_branch_query_token == settings.num_video_query_token


def test_inference_has_no_manifest() -> None:
    with pytest.raises(ValueError, match="no branch trains"):
        describe_branch(golden_settings(None), LLM, stage=2, frames=8, clips=8, step=1)


def saved(path: Path, metadata: dict[str, str]) -> Path:
    save_file({"llama_proj.bias": torch.zeros(2)}, path, metadata)
    return path


def test_a_manifest_is_read_back(tmp_path: Path) -> None:
    manifest = described()
    file = open_weights(saved(tmp_path / "a.safetensors", manifest.to_metadata()))
    assert Manifest.of_file(file) == manifest


def test_a_manifest_of_a_later_version_is_read(tmp_path: Path) -> None:
    manifest = described()
    text = json.dumps({**asdict(manifest), "added_later": 1})
    path = saved(tmp_path / "a.safetensors", {**manifest.to_metadata(), "manifest": text})
    assert Manifest.of_file(open_weights(path)) == manifest


def test_files_of_others_have_no_manifest(tmp_path: Path) -> None:
    assert Manifest.of_file(open_weights(saved(tmp_path / "a.safetensors", {}))) is None
    torch.save({"model": {"a": torch.zeros(1)}, "epoch": 3}, tmp_path / "a.pth")
    assert Manifest.of_file(open_weights(tmp_path / "a.pth")) is None


def test_a_manifest_of_before_the_ablations_has_none(tmp_path: Path) -> None:
    values = asdict(described())
    del values["video_frame_positions"], values["video_fusion"]
    metadata = {**described().to_metadata(), "manifest": json.dumps(values)}
    file = open_weights(saved(tmp_path / "a.safetensors", metadata))
    assert Manifest.of_file(file) == described()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"branch": "video"}', None])
def test_a_damaged_manifest_is_an_error(tmp_path: Path, text: str | None) -> None:
    metadata = {"kind": FORMAT} if text is None else {"kind": FORMAT, "manifest": text}
    file = open_weights(saved(tmp_path / "a.safetensors", metadata))
    with pytest.raises(WeightsError, match=r"a\.safetensors: its manifest is damaged"):
        Manifest.of_file(file)


@pytest.mark.parametrize(
    "changes",
    [
        {"llm_width": "a"},
        {"branch": 3},
        {"branch": "both"},
        {"template": 1},
        {"step": -1},
        {"video_fusion": 1},
        {"video_frame_positions": 1},
        None,
    ],
)
def test_a_manifest_of_wrong_types_is_damaged(
    tmp_path: Path, changes: dict[str, Any] | None
) -> None:
    text = "[" * 100_000 if changes is None else json.dumps({**asdict(described()), **changes})
    path = saved(tmp_path / "a.safetensors", {"kind": FORMAT, "manifest": text})
    with pytest.raises(WeightsError, match=r"a\.safetensors: its manifest is damaged"):
        Manifest.of_file(open_weights(path))


def test_a_file_that_fits_is_taken() -> None:
    assert mismatch(described("video"), golden_settings("video"), LLM) is None
    assert mismatch(described("audio"), golden_settings("audio"), LLM) is None
    blind = golden_settings("audio", video_frame_positions=False)
    assert mismatch(described("audio"), blind, LLM) is None
    deaf = golden_settings("video", equip_audio_branch=False)
    assert mismatch(described("video"), deaf, LLM) is None


@pytest.mark.parametrize(
    ("manifest", "settings", "message"),
    [
        (
            described("audio"),
            {"equip_audio_branch": False},
            "holds the audio branch, but model.equip_audio_branch is false; set it to true",
        ),
        (
            replace(described(), llm_width=5120, llm_layers=40),
            {},
            "language model 5120 wide and 40 layers deep, but that of model.llama_model is 64 wide "
            "and 2 deep",
        ),
        (replace(described(), llm_layers=3), {}, "64 wide and 3 layers deep"),
        (
            replace(described(), template="llama_v2"),
            {},
            "with the template llama_v2, but the configuration has vicuna; set "
            "model.model_type=pretrain_llama_v2",
        ),
        (
            described(),
            {"video_frame_positions": False},
            "with model.video_frame_positions=true, but the configuration has false; set "
            "model.video_frame_positions=true",
        ),
        (
            replace(described(), video_fusion="mean"),
            {},
            "with model.video_fusion=mean, but the configuration has qformer",
        ),
    ],
    ids=["branch", "width", "depth", "template", "positions", "fusion"],
)
def test_a_misfit_says_what_to_change(
    manifest: Manifest, settings: dict[str, Any], message: str
) -> None:
    problem = mismatch(manifest, golden_settings("video", **settings), LLM)
    assert problem is not None
    assert message in problem


def test_the_hash_follows_the_frozen_parts_alone() -> None:
    plain = frozen_hash(golden_settings("video"), LLM)
    assert plain == frozen_hash(golden_settings("audio", max_txt_len=99), LLM)
    assert plain != frozen_hash(golden_settings("video", image_size=28), LLM)
    wider = LlamaConfig(hidden_size=128, num_hidden_layers=2)
    assert plain != frozen_hash(golden_settings("video"), wider)


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
