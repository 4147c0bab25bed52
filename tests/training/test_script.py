"""How `train.py` ends: before the training has begun, and after it."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest

import train
from video_llama.types import ConfigError


def test_an_interrupt_at_the_start_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupt(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(train, "run", interrupt)
    assert train.main(["--cfg-path", "x.yaml"]) == 130
    assert capsys.readouterr().err == "\ntrain.py: interrupted\n"


def test_an_error_does_not_steer_the_terminal(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: object) -> int:
        raise ConfigError("a\x1b[31m\nb")

    monkeypatch.setattr(train, "run", fail)
    assert train.main(["--cfg-path", "x.yaml"]) == 1
    assert capsys.readouterr().err == "train.py: error: a\\x1b[31m\nb\n"


def test_a_finished_run_says_how_to_ask_its_branch() -> None:
    words = ["model.ckpt=old.pth", "datasets.a.storage=x y", "run.resume_ckpt_path=latest"]
    args = train.parse_arguments(["--cfg-path", "x.yaml", "--options", *words])
    command = train.ask_command(args, Path("out/branch.safetensors"), hears=False)
    assert shlex.split(command) == [
        *("video-llama", "ask", "clip.mp4", "What happens?", "--cfg-path", "x.yaml"),
        *("--options", "datasets.a.storage=x y", "model.ckpt=out/branch.safetensors"),
    ]
    command = train.ask_command(args, Path("b.safetensors"), hears=True)
    assert shlex.split(command)[-3:] == [*words[:2], "model.ckpt_2=b.safetensors"]
