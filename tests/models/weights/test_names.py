"""The shipped training configurations at full size: shapes, names and counts, without any file."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from transformers import LlamaForCausalLM

from tests.full_model import UNUSED_TOWER, Branch, full_model, read_reference
from tests.reference import ROOT, needs_shared
from video_llama.config.build import build_model
from video_llama.config.load import load_config
from video_llama.models.video_llama import VideoLlama
from video_llama.models.weights import files as weight_files
from video_llama.models.weights import load as weights
from video_llama.models.weights.load import targets_of
from video_llama.models.weights.names import LOGIT_SCALE

YAMLS: list[tuple[str, Branch]] = [
    ("visionbranch_stage1_pretrain", "video"),
    ("visionbranch_stage2_finetune", "video"),
    ("audiobranch_stage1_pretrain", "audio"),
    ("audiobranch_stage2_finetune", "audio"),
]
TRAINABLE: dict[Branch, int] = {"video": 22_104_064, "audio": 22_855_680}
ALL: dict[Branch, int] = {"video": 7_851_579_264, "audio": 9_075_216_001}
UNUSED_TOWERS = 481_715_969
"""Parameters of ImageBind's text, depth, thermal and IMU towers, which we never build."""


def refuse(*args: object, **kwargs: object) -> NoReturn:
    raise AssertionError(f"a weight file was opened: {args} {kwargs}")


@pytest.fixture(autouse=True)
def no_weight_file(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "open_weights", refuse)
    monkeypatch.setattr(weight_files, "safe_open", refuse)
    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", refuse)
    monkeypatch.setattr(torch, "load", refuse)


def build(name: str, *overrides: str) -> VideoLlama:
    path = ROOT / "train_configs" / f"{name}.yaml"
    return build_model(load_config(path, overrides=["run.device=meta", *overrides]))


@pytest.mark.parametrize(("name", "branch"), YAMLS)
def test_training_configuration_has_the_parameters_of_the_original(
    name: str, branch: Branch
) -> None:
    model = build(name)
    trainable = dict(model.trainable_parameters())
    assert len(trainable) == 58
    assert sum(p.numel() for p in trainable.values()) == TRAINABLE[branch]
    unused = UNUSED_TOWERS if branch == "audio" else 0
    assert sum(p.numel() for p in model.parameters()) == ALL[branch] - unused

    reference = full_model().branches[branch]
    assert TRAINABLE[branch] == reference["trainable_params"]
    assert ALL[branch] == reference["total_params"]
    assert sorted(trainable) == sorted(reference["trainable_keys"])


@pytest.mark.parametrize(("name", "branch"), [YAMLS[0], YAMLS[2]])
def test_every_parameter_has_name_and_shape_of_the_original(name: str, branch: Branch) -> None:
    ours = {name: list(target.shape) for name, target in targets_of(build(name)).items()}
    audio = re.compile("audio_")
    theirs = {
        name: shape
        for name, shape in full_model().parameters().items()
        if not UNUSED_TOWER.match(name) and (branch == "audio" or not audio.match(name))
    }
    if branch == "audio":
        assert ours.pop(LOGIT_SCALE) == []  # the one buffer that files fill
    assert ours == theirs


def test_unused_towers_are_what_is_left_out() -> None:
    left_out = [s for n, s in full_model().parameters().items() if UNUSED_TOWER.match(n)]
    assert sum(math.prod(shape) for shape in left_out) == UNUSED_TOWERS


def test_sizes_of_13b_are_assumed_from_the_folder_name() -> None:
    model = build("visionbranch_stage1_pretrain", "model.llama_model=nowhere/vicuna-13b")
    assert model.language_model.config.num_hidden_layers == 40
    assert tuple(model.video_branch.proj.weight.shape) == (5120, 768)


def test_shapes_take_no_memory() -> None:
    model = build("audiobranch_stage1_pretrain")
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}


@needs_shared
def test_condensed_names_are_those_of_the_reference() -> None:
    assert full_model() == read_reference()


def test_sizes_of_the_llm_come_from_its_folder_where_there_is_one(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(
        '{"model_type": "llama", "hidden_size": 64, '
        '"num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 8}',
        "utf-8",
    )
    model = build("visionbranch_stage1_pretrain", f"model.llama_model={tmp_path}")
    assert model.video_branch.proj.out_features == 64
