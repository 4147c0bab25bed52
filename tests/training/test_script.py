"""How `train.py` ends before the training has begun."""

from __future__ import annotations

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
