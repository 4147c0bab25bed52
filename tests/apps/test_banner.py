"""Which model answers, in one line."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from tests.tiny_chat import tiny_model
from video_llama.apps.banner import model_line
from video_llama.common.io import default_config_path
from video_llama.config.load import load_config


def model(*overrides: str, random_modules: tuple[str, ...] = ()) -> Any:
    settings = load_config(default_config_path(), overrides).model
    return SimpleNamespace(settings=settings, random_modules=random_modules)


@pytest.mark.parametrize("overrides", [(), ("model.ckpt=mine.safetensors",)])
def test_the_tiny_model_says_what_it_knows(overrides: tuple[str, ...]) -> None:
    line = model_line(model(*overrides))
    assert line.startswith(
        "Tiny demo model: knows bells, drums, birds, sirens, whistles and engines"
    )
    assert "real weights" in line


def test_another_model_is_named_by_its_files() -> None:
    files = ["model.llama_model=ckpt/llama-2-7b-chat-hf", "model.ckpt=a/VL.pth"]
    named = model(*files, "model.ckpt_2=b/AL.pth")
    assert model_line(named) == "Video-LLaMA on llama-2-7b-chat-hf, with VL.pth and AL.pth"
    alone = model(*files[:1], "model.ckpt=null", "model.ckpt_2=null", "model.random_init=true")
    assert model_line(alone) == "Video-LLaMA on llama-2-7b-chat-hf"


def test_random_weights_know_nothing() -> None:
    assert model_line(model(random_modules=("video_branch",))) == ""
    assert model_line(tiny_model()) == ""
