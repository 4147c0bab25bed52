"""Packing a data set into webdataset tars, which train batch for batch as the files do.

Item i of the data set is sample i of the tars. What cannot be packed keeps its place, with the
reason, and is replaced in training as the broken file was.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
from webdataset.writer import TarWriter

from video_llama.datasets.pool import Progress, parallel
from video_llama.datasets.records import Record, Records
from video_llama.datasets.shard_index import NOT_MEDIA, open_index
from video_llama.datasets.shrink import shrunk
from video_llama.files import atomic_write
from video_llama.processors.files import read_file
from video_llama.types import ConfigError, MediaError

PLAN = "pack.json"
_FINGERPRINT_ITEMS = 10_000


@dataclass(frozen=True)
class PackPlan:
    """What is packed and how; a folder holds the tars of one plan.

    Attributes:
        name: of the data set, which the tars are named after.
        num_items: items of the data set.
        samples_per_shard: items per tar; the last one may have fewer.
        size: shorter side of pictures and clips, pixels; None copies the files as they are.
        fingerprint: of the annotation.
    """

    name: str
    num_items: int
    samples_per_shard: int
    size: int | None
    fingerprint: str

    @property
    def num_shards(self) -> int:
        """Tars in all."""
        return -(-self.num_items // self.samples_per_shard)

    def tar(self, shard: int) -> str:
        """File name of a tar."""
        return f"{self.name}-{shard:06d}.tar"

    @property
    def pattern(self) -> str:
        """All tars, as `build_info.storage` takes them."""
        if self.num_shards == 1:
            return self.tar(0)
        return f"{self.name}-{{{0:06d}..{self.num_shards - 1:06d}}}.tar"


@dataclass(frozen=True)
class PackReport:
    """What `pack` did.

    Attributes:
        storage: the tars, as `build_info.storage` takes them.
        num_items: items of the data set.
        num_shards: tars in all.
        num_written: tars written this time; the others were there.
        failed: item id and reason of what could not be packed this time.
    """

    storage: str
    num_items: int
    num_shards: int
    num_written: int
    failed: tuple[tuple[str, str], ...]


def pack(
    name: str,
    records: Records,
    folder: Path,
    *,
    samples_per_shard: int = 1000,
    size: int | None = None,
    num_workers: int = 0,
    progress: Progress | None = None,
) -> PackReport:
    """Write a data set as tars with an index beside each; tars that are there already are kept.

    Args:
        name: of the data set.
        records: its items.
        folder: where the tars go.
        samples_per_shard: items per tar.
        size: shorter side of pictures and clips, pixels; None copies the files as they are.
        num_workers: processes; 0 works in this one.
        progress: called with the tars done and the tars in all.

    Raises:
        ConfigError: the folder holds tars of another data set or with other options.
        DiskFullError: there was no room for a tar; those before it are whole.
    """
    plan = PackPlan(name, len(records), samples_per_shard, size, _fingerprint(records))
    _claim(folder, plan)
    missing = [shard for shard in range(plan.num_shards) if not _done(folder, plan, shard)]
    work = partial(_write_shard, records, folder, plan)
    failed: list[tuple[str, str]] = []
    done = plan.num_shards - len(missing)
    for failures in parallel(work, missing, num_workers=num_workers):
        done += 1
        failed += failures
        if progress:
            progress(done, plan.num_shards)
    return PackReport(
        storage=str(folder / plan.pattern),
        num_items=len(records),
        num_shards=plan.num_shards,
        num_written=len(missing),
        failed=tuple(sorted(failed)),
    )


def _fingerprint(records: Records) -> str:
    """Of text lengths and some names: tells two annotations of equal length apart."""
    count = len(records)
    digest = blake2b(records.lengths(np.arange(count)).tobytes(), digest_size=8)
    for index in range(0, count, max(1, count // _FINGERPRINT_ITEMS)):
        digest.update(records.locate(index)[0].encode())
    return digest.hexdigest()


def _claim(folder: Path, plan: PackPlan) -> None:
    """Make the folder, or see that it belongs to the same plan; clear what a crash left."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PLAN
    if path.exists():
        found = _read_plan(path)
        different = [key for key, value in asdict(plan).items() if found.get(key) != value]
        if different:
            given = ", ".join(f"{key} {asdict(plan)[key]}" for key in different)
            there = ", ".join(f"{key} {found.get(key)}" for key in different)
            raise ConfigError(
                f"{folder}: holds tars with {there}, but {given} was asked for; choose an empty "
                "folder, or the same data set and options to go on"
            )
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(asdict(plan), indent=1), "utf-8")
    for leftover in folder.glob(f".{plan.name}-*.tmp"):
        leftover.unlink()


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(
            f"{path}: {PLAN} is damaged: delete it to pack anew; nothing then says what the tars "
            "beside it were made of, so delete them too unless they are of this data set with "
            "these options"
        )
    return found


def _done(folder: Path, plan: PackPlan, shard: int) -> bool:
    tar = folder / plan.tar(shard)
    if not tar.exists():
        return False
    open_index(tar)  # made now if the process died between the two
    return True


def _write_shard(
    records: Records, folder: Path, plan: PackPlan, shard: int
) -> list[tuple[str, str]]:
    failed: list[tuple[str, str]] = []
    start = shard * plan.samples_per_shard
    stop = min(start + plan.samples_per_shard, plan.num_items)
    tar = folder / plan.tar(shard)
    with (
        atomic_write(tar) as temporary,
        temporary.open("wb") as file,
        TarWriter(file, encoder=False, mtime=0, user="", group="") as writer,
    ):
        for sample in _samples(records, range(start, stop), plan.size, failed):
            writer.write(sample)
    open_index(tar)
    return failed


def _samples(
    records: Records, indices: range, size: int | None, failed: list[tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    for index in indices:
        item_id = records.locate(index)[0]
        text: dict[str, Any] = {"item_id": item_id}
        sample: dict[str, Any] = {"__key__": f"{index:09d}"}
        try:
            record = records[index]
            text |= _text(record)
            content, suffix = _media(record, size)
            sample[suffix] = content
        except MediaError as error:
            text["error"] = error.reason
            failed.append((item_id, error.reason))
        yield {**sample, "json": json.dumps(text, ensure_ascii=False).encode()}


def _text(record: Record) -> dict[str, Any]:
    if record.turns:
        return {"turns": [list(turn) for turn in record.turns]}
    return {"caption": record.caption}


def _media(record: Record, size: int | None) -> tuple[bytes, str]:
    with record.media.open() as path:
        if size is not None:
            try:
                return shrunk(path, size)
            except MediaError as error:
                raise MediaError(record.path, error.reason) from error
        suffix = record.path.suffix.lstrip(".").lower()
        usable = suffix.isascii() and suffix.isalnum() and suffix not in NOT_MEDIA
        return read_file(path), suffix if usable else "bin"
