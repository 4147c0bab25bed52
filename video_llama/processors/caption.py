"""Cleaning of captions, as the captions that the released weights were trained on were cleaned."""

from __future__ import annotations

import re

from video_llama.processors.settings import CaptionSettings

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_SPACES = re.compile(r"\s{2,}")


class CaptionProcessor:
    """`blip_caption` of the original.

    Args:
        settings: prompt and longest caption.
    """

    def __init__(self, settings: CaptionSettings) -> None:
        self.settings = settings

    def __call__(self, caption: str) -> str:
        r"""The caption in lower case, without `. ! " ( ) * # : ; ~`, and not too long.

        Each of those marks becomes a space, runs of white space become one space, and the first
        `max_words` words follow the prompt.

        Args:
            caption: any text.

        Returns:
            One line, unless the caption holds a lone line break between two words.
        """
        text = _PUNCTUATION.sub(" ", caption.lower())
        text = _SPACES.sub(" ", text).rstrip("\n").strip(" ")
        return self.settings.prompt + " ".join(text.split(" ")[: self.settings.max_words])
