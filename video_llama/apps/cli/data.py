"""`video-llama data`: check and pack data sets, write the synthetic world.

What is heavy is imported by the commands.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING, TypeVar

from video_llama.common.io import one_line, shown
from video_llama.datasets.base import DATASETS, BuildInfo, DatasetSettings
from video_llama.types import ConfigError, VideoLlamaError

if TYPE_CHECKING:
    from video_llama.datasets.prepare.check import CheckReport
    from video_llama.datasets.prepare.pack import PackReport
    from video_llama.datasets.records import Records


Bar = Callable[[int, int], None]
"""Shows how many are done, of how many."""
Result = TypeVar("Result")

MAX_SHOWN = 20
"""Findings of a data set that the terminal shows; the report has all."""


def check(args: argparse.Namespace) -> int:
    """Run `data check`: 0 if nothing is missing or corrupt, else 1."""
    from video_llama.datasets.loading import media_loader
    from video_llama.datasets.prepare import check as checking

    def examine(name: str, entry: DatasetSettings, records: Records, bar: Bar) -> CheckReport:
        loader, options = media_loader(entry, split=args.split), {"num_workers": args.workers}
        return checking.check(name, records, loader, sample=args.sample, progress=bar, **options)

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

    from video_llama.datasets.prepare import pack as packing

    def write(name: str, entry: DatasetSettings, records: Records, bar: Bar) -> PackReport:
        return packing.pack(
            name,
            records,
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
    args: argparse.Namespace, work: Callable[[str, DatasetSettings, Records, Bar], Result]
) -> tuple[list[Result], list[str]]:
    """Return the results of the data sets, and the errors of those that cannot be used."""
    from video_llama.datasets.loading import read_records

    results, errors = [], []
    try:
        entries = _entries(args)
    except VideoLlamaError as error:
        entries, errors = {}, [str(error)]
    for name, entry in entries.items():
        try:
            info = entry.build_info.split(args.split)
            assert info is not None
            with _bar(name, "item") as bar:
                results.append(work(name, entry, read_records(entry, info), bar))
        except VideoLlamaError as error:
            errors.append(f"{name}: {error}")
    for message in errors:
        print(f"video-llama: error: {one_line(message)}", file=sys.stderr)
    return results, errors


@contextmanager
def _bar(title: str, unit: str) -> Iterator[Bar]:
    from tqdm import tqdm

    # Drawn for people only, and gone at the end, when the results stand there.
    with tqdm(desc=title, unit=unit, leave=False, disable=None) as bar:

        def show(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


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


def synth(args: argparse.Namespace) -> int:
    """Write the world that `args` describe, and say what came of it."""
    from video_llama.synthetic.media import World
    from video_llama.synthetic.splits import SPLITS
    from video_llama.synthetic.write import write_world

    unknown = [name for name in args.split if name not in SPLITS]
    if unknown:
        raise ConfigError(f"--split {unknown[0]}: one of {', '.join(SPLITS)} expected")
    begin = time.monotonic()
    with _bar("writing", "file") as bar:
        count = write_world(
            args.out,
            num_clips=args.num_clips,
            world=World(seed=args.seed, size=args.size, fps=args.fps),
            splits=[name for name in SPLITS if name in (args.split or SPLITS)],
            num_workers=args.workers,
            progress=bar,
        )
    print(f"{args.out}: {count} media files in {time.monotonic() - begin:.0f} s")
    return 0
