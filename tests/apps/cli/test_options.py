"""Options that commands share."""

from __future__ import annotations

import pytest

from video_llama.apps.cli.commands import COMMANDS
from video_llama.apps.cli.main import main, parse
from video_llama.apps.cli.options import option, spread_overrides


def test_options_may_stand_anywhere() -> None:
    options = ["--options", "model.ckpt=a", "run.seed=2"]
    for argv in (
        [*options, "a.mp4", "b.png", "What is 1 = 1?"],
        ["a.mp4", *options, "b.png", "What is 1 = 1?"],
        ["a.mp4", "b.png", "What is 1 = 1?", *options],
        ["a.mp4", "--options=model.ckpt=a", "--options", "run.seed=2", "b.png", "What is 1 = 1?"],
    ):
        args = parse(["ask", *argv])
        assert args.inputs == ["a.mp4", "b.png", "What is 1 = 1?"]
        assert args.options == ["model.ckpt=a", "run.seed=2"]
    assert parse(["ask", "a.mp4", "--no-audio", "--", "-why?"]).inputs == ["a.mp4", "-why?"]
    assert parse(["ask", "--", "a.mp4", "--options", "x=1"]).inputs == ["a.mp4", "--options", "x=1"]


def test_values_after_options_are_spread_up_to_the_first_other_word() -> None:
    words = ["--options", "a.b=1", "c=x y", "clip.mp4", "d=2"]
    assert spread_overrides(words) == ["--options=a.b=1", "--options=c=x y", "clip.mp4", "d=2"]
    assert spread_overrides(["--options", "clip.mp4"]) == ["--options", "clip.mp4"]
    assert spread_overrides(["--", *words]) == ["--", *words]


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_fits_80_columns(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit):
        main([*command.split(), "--help"])
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


def test_an_option_is_made_of_how_it_is_shown() -> None:
    flags, settings = option("--top-p P", 0.9, "the likeliest words")
    assert flags == ["--top-p"]
    assert settings == {
        "metavar": "P",
        "type": float,
        "default": 0.9,
        "help": "the likeliest words (default 0.9)",
    }
    assert option("inputs FILE", str, "clips", nargs="*") == (
        ["inputs"],
        {"nargs": "*", "metavar": "FILE", "type": str, "help": "clips"},
    )
    assert option("--share", False, "x")[1]["action"] == "store_true"
    assert option("--allow-host NAME", [], "x")[1]["action"] == "append"
