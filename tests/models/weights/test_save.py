"""What a branch file says about itself, and which models it refuses."""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from transformers import LlamaConfig

from tests.golden_model import golden_settings
from video_llama.models.settings import Branch
from video_llama.models.weights.files import open_weights
from video_llama.models.weights.save import FORMAT, Manifest, describe_branch, frozen_hash, mismatch
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
