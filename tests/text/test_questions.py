"""The sentences around media and the prompts of caption data."""

from __future__ import annotations

import pytest

from tests.text.test_templates import MESSAGE, SECONDS
from video_llama.common.io import resource
from video_llama.text.questions import caption_prompts, frames_message
from video_llama.text.templates import LLAMA_V2, VICUNA
from video_llama.types import IMAGE_PLACEHOLDER, ConfigError


def test_frames_message_is_that_of_the_original() -> None:
    assert frames_message(SECONDS) == MESSAGE
    assert frames_message([0]) == "The video contains 1 frames sampled at 0.0 seconds. "


def test_caption_prompts_of_the_original() -> None:
    lines = resource("prompts/alignment_image.txt").read_text("utf-8").splitlines()
    prompts = caption_prompts(lines, VICUNA.caption_prompt)
    assert len(prompts) == 4
    assert prompts[0] == (
        "###Human: <Image><ImageHere></Image> Describe this image in detail. ###Assistant: "
    )
    assert caption_prompts(lines[:1], LLAMA_V2.caption_prompt) == [
        "[INST] <<SYS>>\n \n<</SYS>>\n\n"
        "<Image><ImageHere></Image> Describe this image in detail. [/INST] "
    ]


@pytest.mark.parametrize(
    ("lines", "frame", "message"),
    [
        (["no place"], "{}", "prompt_path: no line"),
        ([IMAGE_PLACEHOLDER * 2], "{}", "more than one"),
        ([IMAGE_PLACEHOLDER], "Human:", "prompt_template.*0 times"),
        ([IMAGE_PLACEHOLDER], "{} {}", "prompt_template.*2 times"),
    ],
)
def test_unusable_caption_prompts(lines: list[str], frame: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        caption_prompts(lines, frame)
