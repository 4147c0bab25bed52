"""Whether a generated answer is the expected one."""

from __future__ import annotations

import unicodedata


def normalised(text: str) -> str:
    """The text without what two right answers may differ in: case, punctuation and white space."""
    kept = (" " if unicodedata.category(c)[0] in "PS" else c for c in text.casefold())
    return " ".join("".join(kept).split())


def is_exact_match(answer: str, reference: str) -> bool:
    """Whether two texts are the same after `normalised`."""
    return normalised(answer) == normalised(reference)
