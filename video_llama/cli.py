"""The `video-llama` program: one parser, one line per error. Torch is imported by the commands."""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from video_llama import __version__
from video_llama.resources import default_config_path
from video_llama.types import VideoLlamaError

if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]

PROG = "video-llama"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: arguments; None: those of the process.

    Returns:
        The exit status: 0 done, 1 an error that the user can mend, 2 wrong usage.
    """
    args = build_parser().parse_args(argv)
    logging.basicConfig(
        level=logging.INFO if args.verbose else logging.WARNING,
        format="%(levelname)s: %(message)s",
        stream=sys.stderr,
    )
    logging.captureWarnings(True)
    module, function = args.handler.split(":")
    try:
        status: int = getattr(importlib.import_module(module), function)(args)
        sys.stdout.flush()
        return status
    except VideoLlamaError as error:
        print(f"{PROG}: error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"\n{PROG}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader (`| head`) has gone; keep Python from complaining about it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def build_parser() -> argparse.ArgumentParser:
    """The parser of all commands; each names its handler as `module:function`."""
    parser = argparse.ArgumentParser(
        prog=PROG, description="An audio-visual language model: watches, hears and answers."
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is being done")
    commands = parser.add_subparsers(metavar="COMMAND", required=True)
    _add_ask(commands)
    _add_chat(commands)
    _add_doctor(commands)
    _add_convert(commands)
    return parser


def _add_ask(commands: Commands) -> None:
    ask = commands.add_parser(
        "ask",
        help="one answer about clips, pictures and sounds",
        description="Answer one question about clips, pictures and sounds.",
        usage=f'{PROG} ask [options] FILE [FILE ...] "QUESTION"',
    )
    ask.add_argument("inputs", nargs="+", metavar="ARG", help="files, then a question")
    ask.add_argument("--json", action="store_true", help="print one JSON object with the details")
    _add_model_options(ask)
    _add_answer_options(ask)
    ask.set_defaults(handler="video_llama.cli_chat:ask")


def _add_chat(commands: Commands) -> None:
    chat = commands.add_parser(
        "chat",
        help="a conversation in the terminal",
        description="Talk about clips, pictures and sounds. /help lists what else can be typed.",
    )
    chat.add_argument("files", nargs="*", metavar="FILE", help="clips, pictures and sounds")
    _add_model_options(chat)
    _add_answer_options(chat)
    chat.set_defaults(handler="video_llama.cli_chat:chat")


def _add_doctor(commands: Commands) -> None:
    doctor = commands.add_parser(
        "doctor",
        help="check a configuration before anything heavy",
        description="Check every path, file, shape and setting of a YAML, and estimate its memory.",
    )
    doctor.add_argument("cfg_path", metavar="YAML", help="the configuration")
    _add_overrides(doctor)
    doctor.set_defaults(handler="video_llama.cli_tools:doctor")


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
    convert.set_defaults(handler="video_llama.cli_tools:convert")


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--cfg-path",
        default=None,
        metavar="YAML",
        help=f"configuration (default: the tiny preset, {default_config_path().name})",
    )
    _add_overrides(parser)


def _add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--options",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE",
        help="change settings, such as model.precision=fp16",
    )


def _add_answer_options(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("answers")
    group.add_argument("--no-audio", action="store_true", help="do not listen to clips")
    group.add_argument("--num-frames", type=int, metavar="N", help="frames taken of a clip")
    group.add_argument("--num-clips", type=int, metavar="N", help="segments taken of a sound")
    group.add_argument(
        "--temperature", type=float, default=0.0, metavar="T", help="0 (default): always the same"
    )
    group.add_argument("--seed", type=int, metavar="N", help="repeat a random answer")
    group.add_argument("--top-p", type=float, default=0.9, metavar="P", help="default 0.9")
    group.add_argument("--num-beams", type=int, default=1, metavar="N", help="default 1")
    group.add_argument(
        "--max-new-tokens", type=int, default=300, metavar="N", help="longest answer (default 300)"
    )


if __name__ == "__main__":
    sys.exit(main())
