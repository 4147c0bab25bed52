"""Groups of options that several commands share, and the parsing of `--options`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import Any

from video_llama.common.io import default_config_path

_OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
"""How a value of `--options` begins."""

_ANSWER_OPTIONS: tuple[tuple[str, type, Any, str, str], ...] = (
    (
        *("--temperature", float, 0.0, "T"),
        "0 (default): the likeliest answer, always the same; higher: more varied",
    ),
    ("--seed", int, None, "N", "with a temperature: the same N, the same answer"),
    (
        *("--top-p", float, 0.9, "P"),
        "with a temperature: only the likeliest words that make up P together (default 0.9)",
    ),
    (
        *("--num-beams", int, 1, "N"),
        "search over N answers at once: slower, not streamed (default 1)",
    ),
    ("--max-new-tokens", int, 300, "N", "longest answer (default 300)"),
    ("--min-new-tokens", int, 1, "N", "shortest answer (default 1)"),
    (
        *("--repetition-penalty", float, 1.0, "R"),
        "above 1: words that the answer has had become less likely (default 1)",
    ),
    (
        *("--length-penalty", float, 1.0, "L"),
        "of beams: above 0 favours long answers, below 0 short ones (default 1)",
    ),
)
"""Flag, type, default, name of the value, help."""


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """Add `--cfg-path` and `--options`."""
    parser.add_argument(
        "--cfg-path",
        default=None,
        metavar="YAML",
        help="configuration of the model "
        f"(default: {default_config_path().name}, which knows a small synthetic world only)",
    )
    add_overrides(parser)


def add_overrides(parser: argparse.ArgumentParser) -> None:
    """Add `--options`; `spread_overrides` lets several values follow one flag."""
    parser.add_argument(
        "--options",
        action="append",
        type=_override,
        default=[],
        metavar="KEY=VALUE",
        help="change a setting, such as model.precision=fp16; several may follow",
    )


def _override(value: str) -> str:
    if "=" not in value:
        raise argparse.ArgumentTypeError(f"{value!r} given, KEY=VALUE expected")
    return value


def spread_overrides(argv: Sequence[str]) -> list[str]:
    """Turn `--options a.b=1 c=2` into `--options=a.b=1 --options=c=2`.

    With `nargs="+"` argparse would let `--options` swallow the files after it.
    """
    # A file may hold "=" as well: only what looks like a key belongs to the option.
    spread: list[str] = []
    inside = False
    for index, word in enumerate(argv):
        # What follows "--" are files, whatever they look like.
        if word == "--":
            return [*spread, *argv[index:]]
        following = argv[index + 1] if index + 1 < len(argv) else ""
        if word == "--options" and _OVERRIDE.match(following):
            inside = True
        elif inside and _OVERRIDE.match(word):
            spread.append(f"--options={word}")
        else:
            inside = False
            spread.append(word)
    return spread


def add_answer_options(parser: argparse.ArgumentParser) -> None:
    """Add what is taken of media, and the options of `GenerationSettings`."""
    # The defaults are greedy, unlike those of a session in Python: a command should repeat itself.
    group = parser.add_argument_group("answers")
    group.add_argument("--no-audio", action="store_true", help="do not listen to clips")
    group.add_argument(
        "--num-frames",
        type=int,
        metavar="N",
        help="frames taken of a clip (default: as configured)",
    )
    group.add_argument(
        "--num-clips", type=int, metavar="N", help="segments taken of a sound (default: likewise)"
    )
    for flag, kind, default, metavar, text in _ANSWER_OPTIONS:
        group.add_argument(flag, type=kind, default=default, metavar=metavar, help=text)
    group.add_argument(
        "--compiled",
        action="store_true",
        help="compile the decoding: the first answer comes later, the others faster",
    )
