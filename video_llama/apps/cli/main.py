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

from video_llama import __version__
from video_llama.apps.cli.commands import COMMANDS
from video_llama.apps.cli.options import spread_overrides
from video_llama.common.io import one_line
from video_llama.common.threads import set_thread_defaults
from video_llama.types import VideoLlamaError

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
        handlers = importlib.import_module(f"video_llama.apps.cli.{module}")
        status: int = getattr(handlers, function)(args)
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
    """Make the parser of all commands; each sets `handler` to its `module:function`."""
    parser = argparse.ArgumentParser(
        prog=PROG, description="An audio-visual language model: watches, hears and answers."
    )
    parser.add_argument("--version", action="version", version=f"{PROG} {__version__}")
    parser.add_argument("-v", "--verbose", action="store_true", help="say what is being done")
    holders = {"": parser.add_subparsers(metavar="COMMAND", required=True)}
    for name, command in COMMANDS.items():
        # `data check` is a command of `data`.
        above, _, word = name.rpartition(" ")
        made = holders[above].add_parser(
            word, help=command.summary, description=command.description, **command.parser
        )
        if not command.handler:
            holders[name] = made.add_subparsers(metavar="COMMAND", required=True)
            continue
        made.set_defaults(handler=command.handler)
        for flags, settings in command.options:
            made.add_argument(*flags, **settings)
        for title, options in command.groups.items():
            group = made.add_argument_group(title)
            for flags, settings in options:
                group.add_argument(*flags, **settings)
    return parser


if __name__ == "__main__":
    sys.exit(main())
