"""`video-llama data synth` writes the synthetic world. What is heavy the command imports."""

from __future__ import annotations

import argparse
import os
import time
from pathlib import Path
from typing import Any

from video_llama.types import ConfigError


def add_parser(commands: Any) -> None:
    """Add the command `synth`.

    Args:
        commands: what `ArgumentParser.add_subparsers` returned for `data`.
    """
    synth = commands.add_parser(
        "synth",
        help="write the synthetic world: clips, pictures, sounds, questions",
        description="Write clips, pictures and sounds of the synthetic world (docs/world.md) in "
        "the formats of the real data sets, with questions to score a model with.",
    )
    synth.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to make")
    synth.add_argument(
        "--num-clips", type=int, required=True, metavar="N", help="clips of the training split"
    )
    synth.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    synth.add_argument(
        "--size", type=int, default=96, help="pixels of the shorter side (default: 96)"
    )
    synth.add_argument("--fps", type=float, default=8.0, help="frames per second (default: 8)")
    synth.add_argument(
        "--split",
        action="append",
        dest="splits",
        metavar="NAME",
        help="train, valid, test or test_pairs; may be repeated (default: all of them)",
    )
    synth.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes; default: all cores"
    )
    synth.set_defaults(handler="video_llama.cli_synth:synth")


def synth(args: argparse.Namespace) -> int:
    """Write the world that `args` describe, and say what came of it."""
    from tqdm import tqdm

    from video_llama.synthetic.items import World
    from video_llama.synthetic.sampling import SPLITS
    from video_llama.synthetic.write import write_world

    unknown = [name for name in args.splits or () if name not in SPLITS]
    if unknown:
        raise ConfigError(f"--split {unknown[0]}: one of {', '.join(SPLITS)} expected")
    begin = time.monotonic()
    with tqdm(unit="file", desc="writing") as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        count = write_world(
            args.out,
            num_clips=args.num_clips,
            world=World(seed=args.seed, size=args.size, fps=args.fps),
            splits=[name for name in SPLITS if name in (args.splits or SPLITS)],
            num_workers=args.workers,
            progress=show,
        )
    print(f"{args.out}: {count} media files in {time.monotonic() - begin:.0f} s")
    return 0
