"""How caption data is written for each conversation format. Torch-free."""

from __future__ import annotations

from typing import NamedTuple


class CaptionTemplate(NamedTuple):
    """How caption data of stage 2 is written for one kind of LLM (MiniGPT-4's format)."""

    prompt: str
    """Text around the prompt, which replaces `{}`."""
    end_sym: str
    """What ends the caption."""


CAPTION_TEMPLATES = {
    "vicuna": CaptionTemplate("###Human: {} ###Assistant: ", "###"),
    "llama_v2": CaptionTemplate("[INST] <<SYS>>\n \n<</SYS>>\n\n{} [/INST] ", "</s>"),
}
STAGE_1_END_SYM = "\n"
