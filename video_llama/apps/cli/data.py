"""`video-llama data`: check and pack data sets, write the synthetic world.

What is heavy is imported by the commands.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_llama.common.io import one_line, positive, shown
from video_llama.datasets.base import DATASETS, SPLITS, BuildInfo, DatasetSettings
from video_llama.types import ConfigError, VideoLlamaError

if TYPE_CHECKING:
    from video_llama.datasets.prepare.check import CheckReport
    from video_llama.datasets.prepare.pack import PackReport


MAX_SHOWN = 20
"""Findings of a data set that the terminal shows; the report has all."""

EPILOG = """examples:
  video-llama data check train_configs/visionbranch_stage1_pretrain.yaml --sample 500
  video-llama data check webvid --anno-dir clips.csv --videos-dir clips/ --json report.json
  video-llama data pack webvid packed/ --anno-dir clips.csv --videos-dir clips/ --size 224
  video-llama data synth --out data/world --num-clips 1000 --seed 0
"""


def add_parser(subparsers: Any) -> argparse.ArgumentParser:
    """Add the commands `data check`, `data pack` and `data synth`.

    Args:
        subparsers: what `ArgumentParser.add_subparsers` returned.

    Returns:
        The parser of `data`. Its commands set `handler` to the `module:function` that takes the
        parsed arguments and returns the exit status.
    """
    data: argparse.ArgumentParser = subparsers.add_parser(
        "data",
        help="check, pack or make data sets",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = data.add_subparsers(dest="data_command", required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="look for missing, corrupt, silent and equal media")
    _add_source(check)
    check.add_argument("--sample", type=positive, help="items to read of each set; default: all")
    check.add_argument("--json", type=Path, metavar="FILE", help="write a report with all findings")
    check.set_defaults(handler="video_llama.apps.cli.data:check")
    pack = commands.add_parser("pack", help="write webdataset tars, with an index beside each")
    _add_source(pack)
    pack.add_argument("out", type=Path, help="folder of the tars; a folder in it for each data set")
    pack.add_argument("--size", type=positive, help="scale down: pixels of the shorter side")
    pack.add_argument("--samples-per-shard", type=positive, default=1000, help="default: 1000")
    pack.set_defaults(handler="video_llama.apps.cli.data:pack")
    _add_synth(commands)
    return data


def check(args: argparse.Namespace) -> int:
    """Run `data check`: 0 if nothing is missing or corrupt, else 1."""
    from video_llama.datasets.loading import media_loader, read_records
    from video_llama.datasets.prepare import check as checking

    def examine(name: str, entry: DatasetSettings, bar: Callable[[int, int], None]) -> CheckReport:
        info = entry.build_info.split(args.split)
        assert info is not None
        records, loader = read_records(entry, info), media_loader(entry, split=args.split)
        return checking.check(
            name,
            records,
            loader,
            sample=args.sample,
            num_workers=args.workers,
            progress=bar,
        )

    if args.json and not args.json.absolute().parent.is_dir():
        # A check may take hours: its report needs a place before it begins.
        raise ConfigError(f"--json {args.json}: there is no folder {args.json.absolute().parent}")
    reports, errors = _for_each(args, examine)
    _show_check(reports)
    if args.json:
        content = {"data_sets": [asdict(report) for report in reports], "errors": errors}
        text = json.dumps(content, indent=1, ensure_ascii=False) + "\n"
        # A path that is not UTF-8 holds lone surrogates, which JSON can escape.
        args.json.write_bytes(text.encode("utf-8", "backslashreplace"))
    return 0 if not errors and all(report.is_usable for report in reports) else 1


def pack(args: argparse.Namespace) -> int:
    """Run `data pack`: 0 if all items were packed, 1 if some could not be."""
    from rich.console import Console

    from video_llama.datasets.loading import read_records
    from video_llama.datasets.prepare import pack as packing

    def write(name: str, entry: DatasetSettings, bar: Callable[[int, int], None]) -> PackReport:
        info = entry.build_info.split(args.split)
        assert info is not None
        return packing.pack(
            name,
            read_records(entry, info),
            args.out / name,
            samples_per_shard=args.samples_per_shard,
            size=args.size,
            num_workers=args.workers,
            progress=bar,
        )

    reports, errors = _for_each(args, write)
    console = Console()
    for report in reports:
        console.print(
            f"{report.num_items} items in {report.num_shards} tars, {report.num_written} of them "
            f"written now; {len(report.failed)} items could not be packed and keep their place"
        )
        for item_id, reason in report.failed[:MAX_SHOWN]:
            console.print(shown(f"  {item_id}: {reason}"), markup=False)
        storage = shown(f"build_info.storage: {report.storage}")
        console.print(storage, markup=False, soft_wrap=True)
    return 1 if errors or any(report.failed for report in reports) else 0


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help=f"a YAML, or one of {', '.join(DATASETS)}")
    parser.add_argument(
        "--options",
        action="append",
        default=[],
        metavar="KEY=VALUE",
        help="change a setting of the YAML; several may follow",
    )
    parser.add_argument("--data-set", help="only this data set of the YAML")
    parser.add_argument("--split", default="train", choices=list(SPLITS), help="default: train")
    for key in ("anno_dir", "videos_dir", "storage"):
        parser.add_argument(f"--{key.replace('_', '-')}", help=f"build_info.{key}, without a YAML")
    parser.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="processes; default: all cores"
    )


def _entries(args: argparse.Namespace) -> dict[str, DatasetSettings]:
    """Return the data sets that a call means."""
    from video_llama.config.load import load_config

    _check_source(args)
    if args.source in DATASETS:
        info = BuildInfo(anno_dir=args.anno_dir, videos_dir=args.videos_dir, storage=args.storage)
        return {args.source: DATASETS.get(args.source)(build_info=info)}
    entries = load_config(args.source, args.options).datasets
    if args.data_set:
        if args.data_set not in entries:
            raise ConfigError(f"{args.source}: no data set {args.data_set!r} in it")
        entries = {args.data_set: entries[args.data_set]}
    found = {n: entry for n, entry in entries.items() if entry.build_info.split(args.split)}
    if not found:
        raise ConfigError(f"{args.source}: no data set has a {args.split} split")
    return found


def _check_source(args: argparse.Namespace) -> None:
    """Refuse options that would be ignored, and the name of a data set without its place."""
    given = {key: getattr(args, key) for key in ("anno_dir", "videos_dir", "storage")}
    if args.source not in DATASETS:
        for key in (key for key, value in given.items() if value is not None):
            raise ConfigError(
                f"--{key.replace('_', '-')}: {given[key]} given together with {args.source}; "
                "it is for the name of a data set: use --options "
                f"datasets.NAME.build_info.{key}={given[key]}"
            )
        return
    if not (given["anno_dir"] or given["storage"]):
        raise ConfigError(
            f"{args.source}: give --anno-dir or --storage, to say where the data lies"
        )
    if args.split != "train" or args.options or args.data_set:
        raise ConfigError(
            f"{args.source}: --split, --options and --data-set are for a YAML; the name of a data "
            "set takes --anno-dir, --videos-dir and --storage"
        )


def _for_each(
    args: argparse.Namespace,
    work: Callable[[str, DatasetSettings, Callable[[int, int], None]], Any],
) -> tuple[list[Any], list[str]]:
    """Return the results of the data sets, and the errors of those that cannot be used."""
    results, errors = [], []
    try:
        entries = _entries(args)
    except VideoLlamaError as error:
        entries, errors = {}, [str(error)]
    for name, entry in entries.items():
        try:
            with _bar(name) as bar:
                results.append(work(name, entry, bar))
        except VideoLlamaError as error:
            errors.append(f"{name}: {error}")
    for message in errors:
        print(f"video-llama: error: {one_line(message)}", file=sys.stderr)
    return results, errors


@contextmanager
def _bar(name: str) -> Iterator[Callable[[int, int], None]]:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    console = Console(stderr=True)
    with Progress(*columns, TimeRemainingColumn(), console=console, transient=True) as progress:
        task = progress.add_task(name, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)


def _show_check(reports: list[CheckReport]) -> None:
    from rich.console import Console
    from rich.table import Table

    from video_llama.datasets.prepare.check import PROBLEMS

    console = Console()
    table = Table("data set", "items", "read", *PROBLEMS)
    for report in reports:
        counts = [str(report.count(problem)) for problem in PROBLEMS]
        table.add_row(report.name, str(report.num_items), str(report.num_checked), *counts)
    if reports:
        console.print(table)
    for report in reports:
        for finding in report.findings[:MAX_SHOWN]:
            line = f"{report.name}: {finding.problem}: {finding.path}: {finding.reason}"
            console.print(shown(line), markup=False, soft_wrap=True)
        if len(report.findings) > MAX_SHOWN:
            console.print(f"{report.name}: {len(report.findings) - MAX_SHOWN} more (see --json)")


def _add_synth(commands: Any) -> None:
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
    synth.set_defaults(handler="video_llama.apps.cli.data:synth")


def synth(args: argparse.Namespace) -> int:
    """Write the world that `args` describe, and say what came of it."""
    from tqdm import tqdm

    from video_llama.synthetic.media import World
    from video_llama.synthetic.splits import SPLITS
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
