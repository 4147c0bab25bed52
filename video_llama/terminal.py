"""What a terminal may be sent, without the codes that would steer it, and numbers typed in it."""

from __future__ import annotations

import argparse

_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


def shown(text: str, *, keep: str = "") -> str:
    """A text with everything that cannot be printed escaped, as `repr` does it.

    Args:
        text: a name or a message.
        keep: characters that stay.
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def without_controls(text: str) -> str:
    """A text without control characters other than newline and tab."""
    return text.translate(_CONTROLS)


def one_line(error: Exception | str) -> str:
    """The message of an error; of one from the operating system, which file and what is wrong."""
    message = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        message = f"{error.filename}: {(error.strerror or message).lower()}"
    return shown(" ".join(message.splitlines()))


def positive(text: str) -> int:
    """A whole number of at least 1, for `type=` of an argument.

    Raises:
        ArgumentTypeError: it is less.
        ValueError: it is no whole number.
    """
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} given, at least 1 expected")
    return number
