"""The files of the GPU benchmark load as released ones do, and a failing part costs only itself."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import released
from benchmarks.gpu import __main__ as driver
from benchmarks.gpu import parts, training
from tests.full_model import full_model
from video_llama.config.build import build_model
from video_llama.config.load import load_config
from video_llama.models.weights.files import open_weights


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("released") / "files"
    released.write(folder, "tiny", "cpu")
    return folder


def test_every_part_is_filled_from_the_files(files: Path) -> None:
    options = [*released.overrides(files, "tiny"), "run.device=cpu"]
    model = build_model(load_config(released.configuration("tiny"), options))
    assert model.random_modules == []
    assert all(torch.isfinite(parameter).all() for parameter in model.parameters())


def test_types_are_the_released_ones(files: Path) -> None:
    paths = released.paths(files, "tiny")
    eva = open_weights(paths["vit_ckpt"])
    assert {eva.tensor(name).dtype for name in eva.shapes} == {torch.float16}
    branch = open_weights(paths["ckpt"])
    assert {branch.tensor(name).dtype for name in branch.shapes} == {torch.float32}


@pytest.mark.parametrize(("size", "width"), [("7b", 4096), ("13b", 5120)])
def test_names_and_shapes_are_the_released_ones(size: str, width: int, tmp_path: Path) -> None:
    found = released.contents(size, tmp_path)
    eva, bind = found["vit_ckpt"], found["imagebind_ckpt_path"]
    assert "blocks.39.attn.qkv.weight" in eva
    assert {t.dtype for t in eva.values()} == {torch.float16}
    assert any(".thermal." in name for name in bind)
    branch = found["ckpt"]["model"]
    assert branch["llama_proj.weight"].shape == (width, 768)
    assert branch.keys() == dict.fromkeys(full_model().saved("video")).keys()


def test_the_language_model_has_the_shapes_of_its_size() -> None:
    options = ["model.llama_model=no-such-folder/7b"]
    settings = load_config(released.configuration("7b"), options).model
    expected = full_model().parameters()
    for name, shape in released._shapes(settings, {"language_model"}):
        assert expected[name] == list(shape)


def test_nothing_is_left_of_files_that_were_not_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        released.write(tmp_path / "files", "tiny", "cpu")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_not_replaced(files: Path) -> None:
    with pytest.raises(FileExistsError, match="give another folder"):
        released.write(files, "tiny", "cpu")


def test_every_part_has_a_time_limit() -> None:
    assert driver.PARTS.keys() == parts.PARTS.keys()
    assert driver.PARTS.keys() > driver.SLOW


def arguments() -> argparse.Namespace:
    return argparse.Namespace(size="tiny", device="cpu")


def test_a_part_that_fails_says_why(tmp_path: Path) -> None:
    # There are no files.
    result = driver.run_part("packing", tmp_path, arguments())
    assert "does not exist" in result["error"] or "no " in result["error"]
    assert result["figures"] == {}


def test_a_part_that_hangs_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(driver.PARTS, "packing", 0)
    assert driver.run_part("packing", tmp_path, arguments())["error"] == "stopped after 0 s"


def test_figures_stand_beside_their_estimates() -> None:
    found = {
        "training_video": {"figures": {"VL stage 1: samples/s": 70.0, "other": 2.0}},
        "estimate": {"figures": {"VL stage 1: samples/s": 66.0, "not measured": 1.0}},
        "packing": {"error": "stopped", "seconds": 3.0},
    }
    assert [row["value"] for row in driver.table(found, "H200, 7b")] == ["70 (estimated 66)", "2"]


def test_shares_of_the_limits_are_those_of_the_card() -> None:
    found = {
        "limits": {"figures": {"card: products, TFLOP/s": 800.0, "card: memory, TB/s": 4.0}},
        "training_video": {
            "figures": {"VL stage 1: samples/s": 70.0},
            "operations": {"VL stage 1: samples/s": 5.6e12},
        },
        "answers_bf16": {
            "figures": {"bf16: tokens/s, eager": 100.0},
            "bytes": {"bf16: tokens/s, eager": 13e9, "bf16: tokens/s, compiled": 13e9},
        },
    }
    shares = driver.shares(found)
    assert shares == pytest.approx({"VL stage 1: samples/s": 0.49, "bf16: tokens/s, eager": 0.325})


def test_training_takes_the_released_files(files: Path) -> None:
    cfg = training.configuration(files, "tiny", "audio", 1, "run.batch_size_train=3")
    assert cfg.model.trained_branch == "audio"
    assert Path(cfg.model.llama_model).parent == files
    assert cfg.model.ckpt is None
    batch = training.captions(cfg, 2, "cpu", frames=3)
    assert batch.pixel_values is not None
    assert batch.pixel_values.shape == (2, 3, 3, cfg.model.image_size, cfg.model.image_size)
