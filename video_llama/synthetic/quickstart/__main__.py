"""Run everything once, from nothing: data, four trainings, scores, and a question about a clip.

python -m video_llama.synthetic.quickstart [--fast] [--out DIR] [--seed S] [--processes N]

What is finished is skipped when it is run again.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from video_llama.common.io import one_line, positive
from video_llama.synthetic.quickstart.steps import Quickstart, QuickstartOptions
from video_llama.types import VideoLlamaError

FAST_NUM_CLIPS = 160
"""Clips that the training split would have where nothing is trained: the test has half as many."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command.

    Returns:
        The exit status: 0 done, 1 a step has failed, 130 interrupted.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--fast", action="store_true", help="use the shipped branches: no training")
    parser.add_argument("--out", type=Path, default=Path("output/quickstart"), metavar="DIR")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="default: 0")
    parser.add_argument("--processes", type=positive, default=2, metavar="N", help="default: 2")
    parser.add_argument("--num-clips", type=positive, metavar="N", help="clips of the training")
    parser.add_argument("--limit", type=positive, default=42, metavar="N", help="questions a type")
    parser.add_argument(
        "--side-by-side", action="store_true", help="train both branches at once, one process each"
    )
    parser.add_argument("--steps-scale", type=float, default=1.0, help="factor on the trainings")
    parser.add_argument("--options", dest="overrides", nargs="+", default=[], metavar="KEY=VALUE")
    values = vars(parser.parse_args(argv))
    values["num_clips"] = values["num_clips"] or (
        FAST_NUM_CLIPS if values["fast"] else QuickstartOptions.num_clips
    )
    quickstart = Quickstart(QuickstartOptions(**values))
    errors = Console(stderr=True, highlight=False, soft_wrap=True)
    try:
        quickstart.run()
    except (VideoLlamaError, OSError) as error:
        message = str(error) if isinstance(error, VideoLlamaError) else one_line(error)
        errors.print(f"quickstart: error: {message}", markup=False)
        errors.print("What is finished is kept: run it again to go on.", markup=False)
        return 1
    except KeyboardInterrupt:
        errors.print("\nquickstart: interrupted; run it again to go on", markup=False)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
