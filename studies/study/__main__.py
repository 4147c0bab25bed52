"""Train the tiny preset again and again, and compare what it learns.

python -m studies.study seeds      # spread over seeds, with every control
python -m studies.study scales     # of sound features and of new positions
python -m studies.study ablations  # without the parts of the method
python -m studies.study tables     # write the results into README.md and docs/

A study that is stopped goes on where it was. `--split valid` scores on validation data and prints
the table only: choose by it, and score the test data once.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from studies.study.definitions import STUDIES
from studies.study.report import (
    CURVES,
    draw_curves,
    fill_page,
    read_result,
    result_path,
    tables_of,
    write_result,
)
from studies.study.run import StudyRun, run_study
from video_llama.common.io import positive, resource
from video_llama.runners.folder import git_revision, package_versions
from video_llama.types import ConfigError, VideoLlamaError

PAGES = ("README.md", "docs/study.md")
"""Documents with tables of the results."""


def main(argv: Sequence[str] | None = None) -> int:
    """Run a study, or write the tables.

    Returns:
        The exit status: 0 done, 1 an error that the user can mend.
    """
    args = parse_arguments(argv)
    try:
        if args.what == "tables":
            write_tables(args.results)
        else:
            study(args)
    except VideoLlamaError as error:
        sys.stderr.write(f"study: error: {error}\n")
        return 1
    return 0


def parse_arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m studies.study",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=(*STUDIES, "tables"), help="a study, or to write tables")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], metavar="N")
    parser.add_argument(
        "--data", type=Path, default=Path("data/tiny"), help="the world (default: data/tiny)"
    )
    parser.add_argument(
        "--out", type=Path, default=Path("output/study"), help="keeps all that is computed"
    )
    parser.add_argument(
        "--split", choices=("test", "valid"), default="test", help="whose questions are asked"
    )
    parser.add_argument("--limit", type=positive, metavar="N", help="most questions of a type")
    parser.add_argument(
        "--steps-scale", type=float, default=1.0, metavar="F", help="factor on all lengths"
    )
    parser.add_argument("--jobs", type=positive, default=1, help="processes of one thread each")
    parser.add_argument(
        "--results", type=Path, default=Path("benchmarks/results"), help="folder of the results"
    )
    parser.add_argument(
        "--options", nargs="+", default=[], metavar="SECTION.KEY=VALUE", help="of every training"
    )
    return parser.parse_args(argv)


def study(args: argparse.Namespace) -> None:
    """Run a study, print its tables and write its result.

    Raises:
        ConfigError: the world is not there, or an option is wrong.
        StageError: a training has failed.
    """
    if not (args.data / "world.json").is_file():
        raise ConfigError(
            f"--data {args.data}: no world there; "
            f"video-llama data synth --out {args.data} --num-clips 2000"
        )
    chosen = STUDIES[args.what]
    run = StudyRun(
        study=chosen,
        data=args.data,
        out=args.out,
        seeds=tuple(args.seeds),
        splits=("valid",) if args.split == "valid" else chosen.splits,
        limit=args.limit,
        steps_scale=args.steps_scale,
        options=tuple(args.options),
    )
    result = run_study(run, jobs=args.jobs)
    result |= {"revision": git_revision(), "packages": package_versions()}
    sys.stdout.write("\n\n".join(tables_of(result)) + "\n")
    # Only the complete study on the test data is a result to publish.
    whole = args.split == "test" and args.steps_scale == 1 and not args.options and not args.limit
    path = result_path(args.results if whole else args.out, chosen.name)
    write_result(path, result)
    sys.stderr.write(f"result: {path}\n")


def write_tables(results: Path) -> None:
    """Write all results of a folder into the documents, and the curves into docs/."""
    # Curves first: the page names the picture.
    scales = result_path(results, "scales")
    if scales.exists():
        draw_curves(read_result(scales), resource("docs") / CURVES)
    for name in PAGES:
        page = resource(name)
        page.write_text(fill_page(page.read_text("utf-8"), results), "utf-8")


if __name__ == "__main__":
    sys.exit(main())
