"""The tiny preset as a chat and as a program, and a few media files to ask it about."""

from __future__ import annotations

import atexit
import io
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.media import set_rotation, tone, write_audio, write_picture, write_video
from tests.random_tiny import random_tiny
from video_llama.apps.cli.main import main
from video_llama.chat.engine import Chat
from video_llama.chat.session import Session
from video_llama.config.build import build_model
from video_llama.config.load import load_config
from video_llama.models.video_llama import VideoLlama


@cache
def tiny_model(*overrides: str) -> VideoLlama:
    """The tiny preset at random, shared by the tests: leave its weights as they are."""
    return build_model(load_config(random_tiny(), overrides))


VICUNA = (
    *("model.model_type=pretrain_vicuna", "model.random_init=true"),
    *("model.ckpt=null", "model.ckpt_2=null"),
)
"""The other template, with branches that no training of this one has made."""


def tiny_chat(*overrides: str) -> Chat:
    return Chat(tiny_model(*overrides))


def answer(session: Session, question: str = "What is it?", **options: Any) -> str:
    """A short answer, the likeliest one unless `options` say otherwise."""
    return "".join(session.ask(question, **{"temperature": 0.0, "max_new_tokens": 8, **options}))


SPOKEN: dict[str, Any] = {"temperature": 1.0, "top_p": 1.0, "seed": 1, "max_new_tokens": 40}
"""Options of an answer of 40 tokens in many pieces, whatever the weights."""
SPOKEN["min_new_tokens"] = SPOKEN["max_new_tokens"]


@cache
def media_files() -> dict[str, Path]:
    """Small files of every kind, by name."""
    folder = Path(tempfile.mkdtemp(prefix="tiny_media_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sound = tone(3.0)
    return {
        "talkie": write_video(folder / "talkie.mp4", num_frames=24, sound=sound),
        "silent": write_video(folder / "silent.mp4", num_frames=12),
        "portrait": write_video(folder / "portrait.mp4", width=48, height=80, sound=sound),
        "turned": set_rotation(write_video(folder / "turned.mp4"), 90),
        "picture": write_picture(folder / "picture.png"),
        "wav": write_audio(folder / "sound.wav", sound),
        "flac": write_audio(folder / "sound.flac", tone(3.0, hertz=880)),
        "mp3": write_audio(folder / "sound.mp3", sound),
    }


Run = Callable[..., tuple[int, str, str]]
"""Type of the fixture `run`, which calls `run_command`."""


def run_command(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    argv: Sequence[object],
    stdin: str = "",
) -> tuple[int, str, str]:
    """Status, output and errors of a command in this process, with the shared tiny model."""
    monkeypatch.setattr("video_llama.config.build.build_model", lambda cfg, **_: tiny_model())
    monkeypatch.setattr(sys, "stdin", io.StringIO(stdin))
    capsys.readouterr()
    try:
        status = main([str(argument) for argument in argv])
    except SystemExit as leaving:  # argparse
        status = int(leaving.code or 0)
    output, errors = capsys.readouterr()
    return status, output, errors
