"""The sweep over media files finds nothing wrong, and would find it."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks import media_sweep
from tests.reference import ROOT

CASES = list(media_sweep.cases())


@pytest.mark.parametrize("first", range(4))
def test_some_of_the_sweep_is_read_right(tmp_path: Path, first: int) -> None:
    cases = CASES[7 * first :: 60]
    results = {f"{c.row} {c.column}": media_sweep.check(c, tmp_path) for c in cases}
    assert [name for name, result in results.items() if str(result).startswith("wrong")] == []
    assert list(results.values()).count("right") >= 3


def test_the_sweep_finds_faults(tmp_path: Path) -> None:
    case = next(
        c for c in CASES if (c.table, c.row, c.column) == ("Sound", "h264, together", "mp4")
    )
    assert media_sweep.check(case, tmp_path) == "right"
    path = tmp_path / "a.mp4"
    assert "corners" in media_sweep.fault(replace(case, corners="GYRB"), path)
    assert "times off by 1.00 s" in media_sweep.fault(
        replace(case, times=[1.25 * t for t in case.times], sound_start=None), path
    ) or "times off" in media_sweep.fault(replace(case, times=[2 * t for t in case.times]), path)
    assert "sound off by 500 ms" in media_sweep.sound_fault(0.5, path)


def test_the_published_table_holds_enough_files_and_nothing_wrong() -> None:
    page = (ROOT / "docs/media.md").read_text(encoding="utf-8")
    count, right, refused, wrong = (
        int(re.search(pattern, page)[1])  # type: ignore[index]
        for pattern in (r"(\d+) files", r"(\d+) are right", r"(\d+) refused", r"(\d+) wrong")
    )
    assert count == right + refused + wrong
    assert (right >= 200, refused < right / 20, wrong) == (True, True, 0)
    assert "WRONG" not in page
