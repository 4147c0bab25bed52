"""Switches that make training faster change nothing beyond rounding."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from tests.training.training_data import (
    STAGE_2,
    config_path,
    log_lines,
    run_folder,
    tiny_options,
    train,
    write_data,
)
from video_llama.config.build_run import build_runner
from video_llama.config.load import load_config
from video_llama.runners.runner import Runner
from video_llama.types import CaptionBatch, ConfigError

CASE = ("visionbranch", STAGE_2)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "set")


def trained(data: Path, output: Path, *more: str) -> Runner:
    options = [*tiny_options(*CASE, data, output), "run.iters_per_epoch=4", *more]
    built = build_runner(load_config(config_path(*CASE), options), name="run")
    assert built.train()
    return built


def assert_same_course(one: Path, other: Path) -> None:
    lines = [log_lines(run) for run in (one, other)]
    assert len(lines[0]) == len(lines[1]) == 4
    for a, b in zip(*lines, strict=True):
        assert a == pytest.approx(b, rel=1e-4)


@pytest.mark.parametrize("more", [(), ("model.use_grad_checkpoint=true",)])
def test_packing_changes_neither_losses_nor_gradients(
    more: tuple[str, ...], data: Path, tmp_path: Path
) -> None:
    plain = trained(data, tmp_path / "plain")
    packed = trained(data, tmp_path / "packed", "run.packing=true", *more)
    assert_same_course(plain.state.folder, packed.state.folder)


def test_compiling_changes_neither_losses_nor_gradients(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = trained(data, tmp_path / "plain")
    compiled, compile_module = [], nn.Module.compile

    def without_code_generation(module: nn.Module) -> None:
        compiled.append(type(module).__name__)
        compile_module(module, backend="aot_eager")

    monkeypatch.setattr(nn.Module, "compile", without_code_generation)
    every = "run.compile=[vision_encoder, qformers, language_model]"
    run = trained(data, tmp_path / "compiled", every)
    assert set(compiled) == {"EvaBlock", "Blip2QFormerLayer", "LlamaDecoderLayer"}
    assert_same_course(plain.state.folder, run.state.folder)
    assert [name for name, _ in run.components.trainable] == [
        n for n, _ in plain.components.trainable
    ]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["run.compile=[vit]"], "compile: 'vit' given, some of vision_encoder"),
        (["run.compile=[language_model]", "run.packing=true"], "leave one of them"),
    ],
)
def test_switches_that_cannot_be_are_refused(options: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(config_path(*CASE), options)


def test_batches_are_pinned_for_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned: list[Tensor] = []

    def pin(tensor: Tensor) -> Tensor:
        pinned.append(tensor)
        return tensor + 1

    monkeypatch.setattr(Tensor, "pin_memory", pin)
    batch = CaptionBatch(captions=["a dog"], pixel_values=torch.zeros(1, 3, 4, 4))
    found = batch.pin_memory()
    assert len(pinned) == 1
    assert found.captions == batch.captions
    assert found.pixel_values is not None
    assert float(found.pixel_values.min()) == 1


@pytest.mark.slow
def test_two_processes_pack(data: Path, tmp_path: Path) -> None:
    for name, value in (("plain", "false"), ("packed", "true")):
        options = [*tiny_options(*CASE, data, tmp_path / name), "run.iters_per_epoch=4"]
        train(config_path(*CASE), [*options, f"run.packing={value}"], processes=2)
    assert_same_course(run_folder(tmp_path / "plain"), run_folder(tmp_path / "packed"))
