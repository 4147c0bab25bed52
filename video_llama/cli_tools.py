"""`video-llama doctor` and `video-llama convert` in a terminal."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from video_llama.config import load_config
from video_llama.doctor import path_problems
from video_llama.terminal import one_line
from video_llama.types import VideoLlamaError


def doctor(args: Namespace) -> int:
    """Check `args.cfg_path`; one line per problem, or the parts with their memory.

    Returns:
        1 if anything is wrong.
    """
    try:
        cfg = load_config(args.cfg_path, args.options)
    except VideoLlamaError as error:
        return _report([error])
    problems = list(path_problems(cfg))
    if problems:
        return _report(problems)
    # Only now torch is imported: shapes are worth looking at when every file is there.
    from video_llama.doctor_shapes import examine, memory_table

    problems, model = examine(cfg)
    if problems or model is None:
        return _report(problems)
    print(memory_table(cfg, model))
    print(f"{args.cfg_path}: no problem found")
    return 0


def _report(problems: Sequence[str | Exception]) -> int:
    for problem in problems:
        print(f"error: {one_line(problem)}", file=sys.stderr)
    return 1


def convert(args: Namespace) -> int:
    """Convert `args.source` to `args.target` and say what became of its tensors."""
    from video_llama.convert import convert

    target = Path(args.target)
    kept, dropped = convert(Path(args.source), target, force=args.force)
    print(f"{target}: {kept} tensors, {target.stat().st_size / 1e6:.1f} MB")
    for reason, count in dropped.items():
        print(f"  {count} of {reason} left out")
    return 0
