"""Clean captions as those that the released weights were trained on were cleaned."""

from __future__ import annotations

import re

_PUNCTUATION = re.compile(r"[.!\"()*#:;~]")
_SPACES = re.compile(r"\s{2,}")


class CaptionProcessor:
    """`blip_caption` of the original.

    Args:
        prompt: text put before every caption.
    """

    def __init__(self, *, prompt: str = "", max_words: int = 50) -> None:
        self.prompt, self.max_words = prompt, max_words

    def __call__(self, caption: str) -> str:
        r"""Return the caption in lower case, without `. ! " ( ) * # : ; ~`, cut to `max_words`.

        Each of those marks becomes a space, runs of white space become one space, and the first
        `max_words` words follow the prompt.

        Returns:
            One line, unless the caption holds a lone line break between two words.
        """
        # The order matters: marks become spaces first, so that runs of both become one space.
        text = _PUNCTUATION.sub(" ", caption.lower())
        text = _SPACES.sub(" ", text).rstrip("\n").strip(" ")
        return self.prompt + " ".join(text.split(" ")[: self.max_words])
