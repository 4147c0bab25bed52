"""The `video-llama` program: parses a command, runs its handler, and prints errors as one line.

Nothing heavy is imported here. Handlers are imported when they run, so that `--help`, a wrong
option and a missing file answer at once.
"""

from __future__ import annotations

import argparse
import importlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from video_llama import __version__
from video_llama.apps.cli.data import add_parser as _add_data
from video_llama.apps.cli.demo import add_parser as _add_demo
from video_llama.apps.cli.evaluate import add_parser as _add_evaluate
from video_llama.apps.cli.options import (
    add_answer_options,
    add_model_options,
    add_overrides,
    spread_overrides,
)
from video_llama.apps.cli.tools import add_parser as _add_estimate
from video_llama.common.io import one_line
from video_llama.common.threads import set_thread_defaults
from video_llama.types import VideoLlamaError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

PROG = "video-llama"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Returns:
        The exit status: 0 done, 1 an error that the user can mend, 2 wrong usage, 130 interrupted.
    """
    set_thread_defaults()  # before anything imports torch
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:
        # The reader (`| head`) has gone; keep Python from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        # On a line of its own: the terminal has just shown ^C.
        print(f"\n{PROG}: interrupted", file=sys.stderr)
        return 130
    except (VideoLlamaError, OSError) as error:
        print(f"{PROG}: error: {one_line(error)}", file=sys.stderr)
        return 1


def _run(argv: Sequence[str]) -> int:
    for stream in (sys.stdin, sys.stdout):
        # File names and answers may hold what the terminal's encoding cannot: never fail over it.
        if isinstance(stream, io.TextIOWrapper):
            errors = "surrogateescape" if stream is sys.stdin else "backslashreplace"
            stream.reconfigure(errors=errors)
    try:
        args = parse(argv)
        logging.basicConfig(
            level=logging.INFO if args.verbose else logging.WARNING,
            format="%(levelname)s: %(message)s",
            stream=sys.stderr,
        )
        # Warnings of other packages are log lines too, so that --verbose decides on both.
        logging.captureWarnings(True)
        # Imported by name: a command loads its own libraries and no others.
        module, function = args.handler.split(":")
        status: int = getattr(importlib.import_module(module), function)(args)
        return status
    finally:
        # Here and not at exit, where a reader that has gone would cause a traceback.
        if sys.stdout is not None:  # None where the caller closed it
            sys.stdout.flush()


def parse(argv: Sequence[str]) -> argparse.Namespace:
    """Parse the arguments of a command; options may stand before, between and after files."""
    parser = build_parser()
    # argparse takes the files before the first option only: those after it come back as the rest.
    args, rest = parser.parse_known_args(spread_overrides(argv))
    end = rest.index("--") if "--" in rest else len(rest)
    # What looks like an option and is none, or stands where no file may stand, is wrong usage.
    if rest and ("inputs" not in args or any(word.startswith("-") for word in rest[:end])):
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:
        args.inputs += rest[:end] + rest[end + 1 :]
    return args


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of all commands; each names its handler as `module:function`."""
    parser = argparse.ArgumentParser(
        prog=PROG, description="An audio-visual language model: watches, hears and answers."
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is being done")
    # In the order of --help: asking, checking, data, scores.
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_ask(commands)
    _add_chat(commands)
    _add_batch(commands)
    add_model_options(_add_demo(commands))
    _add_doctor(commands)
    _add_convert(commands)
    _add_data(commands)
    add_model_options(_add_evaluate(commands))
    _add_estimate(commands, add_overrides)
    return parser


def _add_ask(commands: Commands) -> None:
    ask = commands.add_parser(
        "ask",
        help="one answer about clips, pictures and sounds",
        description="Answer one question about clips, pictures and sounds. "
        'Example: video-llama ask clip.mp4 "What happens?"',
        usage=f'{PROG} ask [options] FILE [FILE ...] "QUESTION"',
    )
    # One list: argparse could not tell the question from the files.
    ask.add_argument("inputs", nargs="+", metavar="ARG", help="files, then a question")
    ask.add_argument("--json", action="store_true", help="print one JSON object with the details")
    add_model_options(ask)
    add_answer_options(ask)
    ask.set_defaults(handler="video_llama.apps.cli.ask:ask")


def _add_chat(commands: Commands) -> None:
    chat = commands.add_parser(
        "chat",
        help="a conversation in the terminal",
        description="Talk about clips, pictures and sounds. /help lists what else can be typed.",
    )
    chat.add_argument("inputs", nargs="*", metavar="FILE", help="clips, pictures and sounds")
    add_model_options(chat)
    add_answer_options(chat)
    chat.set_defaults(handler="video_llama.apps.cli.ask:chat")


def _add_batch(commands: Commands) -> None:
    batch = commands.add_parser(
        "batch",
        help="many questions of a file, answered together",
        description="Answer the questions of a JSONL file: one object a line, such as "
        '{"question": "What happens?", "video": "a.mp4"}. The answers stand in OUT, in the same '
        "order; run again, it goes on behind the last one.",
    )
    batch.add_argument("source", metavar="IN.jsonl", help="the questions")
    batch.add_argument("target", metavar="OUT.jsonl", help="the answers")
    batch.add_argument(
        "--media-dir", metavar="DIR", help="where the files lie (default: beside IN.jsonl)"
    )
    batch.add_argument(
        "--batch-size", type=int, default=8, metavar="N", help="answers at once (default 8)"
    )
    batch.add_argument("--overwrite", action="store_true", help="begin anew where OUT exists")
    batch.add_argument(
        "--no-progress", dest="progress", action="store_false", help="show no progress bar"
    )
    add_model_options(batch)
    add_answer_options(batch)
    batch.set_defaults(handler="video_llama.apps.cli.batch:batch")


def _add_doctor(commands: Commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check a configuration before anything heavy",
        description="Check every path, file, shape and setting of a YAML, and estimate its memory.",
    )
    doctor.add_argument("cfg_path", metavar="YAML", help="the configuration")
    add_overrides(doctor)
    doctor.set_defaults(handler="video_llama.apps.cli.tools:doctor")


def _add_convert(commands: Commands) -> None:
    convert = commands.add_parser(
        "convert",
        help="released .pth files to .safetensors, and back",
        description="Convert weights: .pth to .safetensors (only what is needed, loads faster), "
        "or a branch .safetensors to a .pth that the original loads.",
    )
    convert.add_argument("source", metavar="IN", help="a .pth, .pt, .bin or .safetensors file")
    convert.add_argument("target", metavar="OUT", help="a .safetensors or .pth file")
    convert.add_argument("--force", action="store_true", help="replace OUT if it exists")
    convert.set_defaults(handler="video_llama.apps.cli.tools:convert")


if __name__ == "__main__":
    sys.exit(main())
