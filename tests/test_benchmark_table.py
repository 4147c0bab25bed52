"""The tables of docs/speed.md are what the script makes of the committed files."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from benchmarks import costs, table
from tests.reference import ROOT


def test_the_page_has_the_table_of_the_result_files() -> None:
    # Else run `python -m benchmarks.table`.
    shown = table.table_in(table.PAGE.read_text("utf-8"), "measured")
    assert shown == table.markdown(table.rows())


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_page_on_speed_has_the_estimates() -> None:
    # Else run `python -m benchmarks.table`.
    assert table.table_in(table.PAGE.read_text("utf-8"), "estimates") == costs.markdown()


def test_an_estimate_of_the_page_is_up_to_date() -> None:
    row = f"| 8 | {costs._cell(costs.plan(size='7b'))}, 26"
    assert row.rsplit(",", 1)[0] in table.PAGE.read_text("utf-8")


def test_every_result_file_of_speed_has_a_line() -> None:
    named = set(re.findall(r"benchmarks/results/(\w+)\.json", table.markdown(table.rows())))
    there = {path.stem for path in table.RESULTS.glob("*.json")}
    assert named == {name for name in there if not name.startswith("study_")}


def test_the_plot_is_committed_and_shown() -> None:
    assert table.PLOT.read_bytes().startswith(b"\x89PNG")
    assert "](speed.png)" in table.PAGE.read_text("utf-8")


def test_comparisons_become_ratios(tmp_path: Path) -> None:
    one = {"name": "prefill", "speedup": 2.0, "spread": [1.5, 2.5]}
    machine = {"device": "H200", "threads": 16, "load": 0.5}
    content = {"machine": machine, "comparisons": [one]}
    (tmp_path / "some.json").write_text(json.dumps(content))
    (row,) = table.rows(tmp_path)
    assert row.ratio == (2.0, 1.5, 2.5)
    assert (row.what, row.value) == ("some: prefill", "2.00 times as fast (1.50 to 2.50)")
    assert row.where.startswith("H200, 16 threads, load 0.5: ")


def test_a_file_may_bring_its_own_lines(tmp_path: Path) -> None:
    content = {"table": [{"what": "turn 10", "value": "5 times", "measured": "CPU"}]}
    (tmp_path / "chat.json").write_text(json.dumps(content))
    assert table.markdown(table.rows(tmp_path)).splitlines()[-1] == "| turn 10 | 5 times | CPU |"


def test_only_what_stands_between_the_marks_changes() -> None:
    text = "before\n<!-- table: a -->\nold\n<!-- /table: a -->\nafter\n"
    changed = table.with_table(text, "a", "new")
    assert changed == text.replace("old", "new")
    assert table.table_in(changed, "a") == "new"
    with pytest.raises(ValueError, match="substring"):
        table.table_in(text, "b")


def test_plotting(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    table.plot(table.rows(ROOT / "benchmarks" / "results"), tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 5000


def test_shares_of_a_cards_limits_are_drawn(tmp_path: Path) -> None:
    content = {"machine": {"device": "H200"}, "size": "7b", "shares": {"VL stage 1": 0.5}}
    (tmp_path / "gpu_h200.json").write_text(json.dumps(content))
    shares = table.limits(tmp_path)
    assert shares == {"H200, 7b: VL stage 1": 0.5}
    table.plot_limits(shares, tmp_path / "limits.png")
    assert (tmp_path / "limits.png").read_bytes().startswith(b"\x89PNG")
