"""Options of commands: how they are described, which ones several share, and `--options`."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from video_llama.common.io import default_config_path
from video_llama.models.generation.settings import GenerationSettings

_OVERRIDE = re.compile(r"[A-Za-z_]\w*(\.\w+)*=")
"""How a value of `--options` begins."""


Option = tuple[list[str], dict[str, Any]]
"""Flags, and settings for `add_argument`."""


@dataclass(frozen=True)
class Command:
    """A command of the program.

    Attributes:
        handler: `module:function` in `apps/cli`; empty for one that only holds other commands.
        summary: its line in the list of commands.
        description: what its own help begins with.
        options: in the order of `--help`.
        groups: further options, by the heading that they stand under.
        parser: further settings of its `ArgumentParser`.
    """

    handler: str
    summary: str
    description: str | None = None
    options: Sequence[Option] = ()
    groups: dict[str, Sequence[Option]] = field(default_factory=dict)
    parser: dict[str, Any] = field(default_factory=dict)


def option(name: str, value: Any, text: str, **settings: Any) -> Option:
    """Describe an option.

    Args:
        name: as `--help` shows it: flags, then what stands for the value, as in `--seed N`.
        value: the default, or the type where there is none; False makes a switch, None
            one that `--no-` turns off, and a list an option that may be repeated.
        text: the line of `--help`, to which the default is added.
        settings: further ones of `add_argument`.
    """
    words = name.split()
    flags = [word for word in words if word.startswith("-")] or words[:1]
    if len(words) > len(flags):
        settings["metavar"] = words[-1]
    if value is False:
        settings["action"] = "store_true"
    elif value is None:
        settings["action"] = argparse.BooleanOptionalAction
    elif isinstance(value, list):
        settings |= {"action": "append", "default": value}
    elif callable(value):
        settings["type"] = value
    else:
        settings = {"type": type(value), "default": value} | settings
        shown = f"{value:g}" if isinstance(value, float) else value
        text += "" if "default" in text else f" (default {shown})"
    return flags, {**settings, "help": text}


def _override(value: str) -> str:
    if "=" not in value:
        raise argparse.ArgumentTypeError(f"{value!r} given, KEY=VALUE expected")
    return value


CHANGE = "change a setting, such as model.precision=fp16; several may follow"
OVERRIDES = option("--options KEY=VALUE", [], CHANGE, type=_override)
DEFAULT = f"(default: {default_config_path().name}, which knows a small synthetic world only)"
WEIGHTS = option("--weights DIR", str, "folder of the model's files, whatever their names are")
MODEL = (
    option("--cfg-path YAML", str, f"configuration of the model {DEFAULT}"),
    WEIGHTS,
    OVERRIDES,
)
# The defaults are greedy, unlike those of a session in Python: a command should repeat itself.
ANSWERS = (
    option("--no-audio", False, "do not listen to clips"),
    option("--num-frames N", int, "frames taken of a clip (default: as configured)"),
    option("--num-clips N", int, "segments taken of a sound (default: likewise)"),
    option("--temperature T", 0.0, "0: the likeliest answer, always the same; above: more varied"),
    option("--seed N", int, "with a temperature: the same N, the same answer"),
    option("--top-p P", 0.9, "with a temperature: the likeliest words that make up P together"),
    option("--num-beams N", 1, "search over N answers at once: slower, not streamed"),
    option("--max-new-tokens N", 300, "longest answer"),
    option("--min-new-tokens N", 1, "shortest answer"),
    option("--repetition-penalty R", 1.0, "above 1: words are less likely that the answer has had"),
    option("--length-penalty L", 1.0, "of beams: above 0 favours long answers, below 0 short ones"),
    option(
        "--compiled",
        None,
        "compile decoding: a later first answer, faster others (default: on a GPU, but for ask)",
    ),
)
"""What is taken of media, and `GenerationSettings` by their names."""


def answer_options(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options of `GenerationSettings` that a command was given."""
    return {each.name: getattr(args, each.name) for each in fields(GenerationSettings)}


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
