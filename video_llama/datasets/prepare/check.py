"""Find the items of a data set that training could not use, before it meets them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Literal

import numpy as np

from video_llama.common.io import read_file
from video_llama.datasets.items import MediaLoader
from video_llama.datasets.prepare.workers import Progress, parallel
from video_llama.datasets.records import Record, Records
from video_llama.datasets.sampling import Integers, key_of, permuted, torch_generator
from video_llama.processors.media import NoSoundError, has_audio
from video_llama.processors.waveform import open_sound
from video_llama.types import MediaError

Problem = Literal["missing", "corrupt", "duplicate", "silent"]
PROBLEMS: tuple[Problem, ...] = ("missing", "corrupt", "duplicate", "silent")
"""The worst first."""

_JOB_ITEMS = 16
_HASHED_BYTES = 1 << 20
_SILENCE = 1e-4
"""Largest sample of a sound that nobody hears: -80 dB."""


@dataclass(frozen=True)
class Finding:
    """An item that is not as it should be: its media file, and what is wrong in words."""

    problem: Problem
    item_id: str
    path: str
    reason: str


@dataclass(frozen=True)
class CheckReport:
    """What `check` found; the worst kinds of findings first, each in the order of the items."""

    name: str
    num_items: int
    num_checked: int
    findings: tuple[Finding, ...] = field(repr=False)

    def count(self, problem: Problem) -> int:
        """Count the findings of a kind."""
        return sum(finding.problem == problem for finding in self.findings)

    @property
    def is_usable(self) -> bool:
        """Return whether nothing is missing or corrupt."""
        return not (self.count("missing") or self.count("corrupt"))


@dataclass(frozen=True)
class _Checked:
    index: int
    digest: str | None
    finding: Finding | None


def check(
    name: str,
    records: Records,
    loader: MediaLoader,
    *,
    sample: int | None = None,
    num_workers: int = 0,
    progress: Progress | None = None,
) -> CheckReport:
    """Read media as training does, and list what is missing, corrupt, silent or there twice.

    Items of equal size whose first megabyte is equal count as duplicates. Silence is only looked
    for where there is a sound track; a clip without one is silent too. A `sample` is chosen at
    random but always the same. `progress` gets the items done and the items in all.
    """
    chosen = _chosen(len(records), sample)
    jobs = [chosen[start : start + _JOB_ITEMS] for start in range(0, len(chosen), _JOB_ITEMS)]
    checked: list[_Checked] = []
    for found in parallel(partial(_check_items, records, loader), jobs, num_workers=num_workers):
        checked += found
        if progress:
            progress(len(checked), len(chosen))
    # Processes finish in any order; a report must not depend on it.
    checked.sort(key=lambda item: item.index)
    findings = [item.finding for item in checked if item.finding] + _duplicates(records, checked)
    findings.sort(key=lambda finding: PROBLEMS.index(finding.problem))
    return CheckReport(name, len(records), len(chosen), tuple(findings))


def _chosen(size: int, sample: int | None) -> Integers:
    if sample is None or sample >= size:
        return np.arange(size)
    # Sorted, so that neighbours on the disk are read one after the other.
    return np.sort(permuted(np.arange(sample), size, key_of("check")))


def _check_items(records: Records, loader: MediaLoader, indices: Iterable[int]) -> list[_Checked]:
    return [_check_item(records, loader, int(index)) for index in indices]


def _check_item(records: Records, loader: MediaLoader, index: int) -> _Checked:
    item_id, name = records.locate(index)

    def finding(problem: Problem, reason: str) -> Finding:
        return Finding(problem, item_id, str(name), reason)

    # The digest first: it tells of broken files too which of them are copies.
    digest = None
    try:
        record = records[index]
        with record.media.open() as path:
            digest = _digest(path)
        loader.load(record, torch_generator("check", index))
        reason = _silence(record, loader)
    except NoSoundError as error:
        return _Checked(index, digest, finding("silent", error.reason))
    except MediaError as error:
        missing = isinstance(error.__cause__, FileNotFoundError)
        return _Checked(index, digest, finding("missing" if missing else "corrupt", error.reason))
    return _Checked(index, digest, finding("silent", reason) if reason else None)


def _digest(path: Path) -> str:
    start = read_file(path, _HASHED_BYTES)
    return f"{path.stat().st_size}-{blake2b(start, digest_size=16).hexdigest()}"


def _silence(record: Record, loader: MediaLoader) -> str | None:
    """Return why nothing is heard of a clip or sound; None if something is."""
    if loader.kind == "image":
        return None
    with record.media.open() as path:
        if not has_audio(path):
            return "it has no sound track"
        try:
            sound = open_sound(path)
        except MediaError as error:
            # The loader has read what training uses of the file, so its frames are good.
            return f"its sound track cannot be used: {error.reason}"
    if sound.kept is not None and float(sound.kept.abs().max()) < _SILENCE:
        return "its sound track is silent"
    return None


def _duplicates(records: Records, checked: list[_Checked]) -> list[Finding]:
    # By size and first megabyte: a check must not read every file to its end.
    same: dict[str, list[int]] = defaultdict(list)
    for item in checked:
        if item.digest:
            same[item.digest].append(item.index)
    found = []
    for first, *others in same.values():
        original, original_path = records.locate(first)
        for index in others:
            item_id, path = records.locate(index)
            if path != original_path:  # several conversations about one picture are fine
                found.append(
                    Finding("duplicate", item_id, str(path), f"the same content as {original}")
                )
    return found
