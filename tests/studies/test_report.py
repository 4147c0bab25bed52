"""Results as tables: what the pages say is what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from studies.study.__main__ import PAGES
from studies.study.definitions import ABLATIONS, AUDIO, SCALES, WIDE_AUDIO
from studies.study.report import (
    CURVES,
    TABLES,
    arm_table,
    draw_curves,
    fill_page,
    read_result,
    result_path,
    split_table,
    tables_of,
    write_result,
)
from tests.reference import ROOT

RESULTS = ROOT / "benchmarks/results"


def score(kind: str, condition: str, right: int) -> dict[str, Any]:
    return {"type": kind, "condition": condition, "right": right, "count": 10, "chance": 0.25}


def run(arm: str, seed: int, split: str, *scores: dict[str, Any]) -> dict[str, Any]:
    return {"arm": arm, "seed": seed, "split": split, "scores": list(scores)}


def seeds_result() -> dict[str, Any]:
    return {
        "study": "seeds",
        "seeds": [0, 1],
        "runs": [
            run("trained", 0, "test", score("kind", "all", 9), score("kind", "shuffled", 8)),
            run("trained", 1, "test", score("kind", "all", 7), score("kind", "shuffled", 8)),
            run("untrained", 0, "test", score("kind", "all", 2)),
            run("untrained", 1, "test", score("kind", "all", 3)),
            run("trained", 0, "test_pairs", score("kind", "all", 1)),
            run("trained", 1, "test_pairs", score("kind", "all", 1)),
        ],
    }


def scales_result() -> dict[str, Any]:
    logged = {s.name: {"seconds": 2, "loss": [[10, 3.0], [20, 1.0]]} for s in AUDIO.stages()}
    wide = {s.name: {"seconds": 2, "loss": [[10, 4.0], [20, 2.0]]} for s in AUDIO.stages()}
    arms = [arm.name for arm in SCALES.arms]
    return {
        "study": "scales",
        "seeds": [0],
        "trainings": [
            {"recipe": AUDIO.name, "seed": 0, "stages": logged},
            {"recipe": WIDE_AUDIO.name, "seed": 0, "stages": wide},
        ],
        "runs": [
            run(arm, 0, "test", score("hear", "sound", place)) for place, arm in enumerate(arms)
        ],
    }


def test_controls_stand_beside_the_scores_with_their_spread() -> None:
    lines = split_table(seeds_result(), "test").splitlines()
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    # 90 and 70: mean 80, standard deviation of two values their distance over the root of 2.
    assert cells[:3] == ["`kind`", "25", "80.0 ± 14.1"]
    head = [cell.strip() for cell in lines[0].strip("|").split("|")]
    assert cells[head.index("shuffled")] == "80.0 ± 0.0"
    assert cells[head.index("random branches")] == "25.0 ± 7.1"
    assert cells[head.index("withheld")] == ""
    assert lines[-1].endswith("over the seeds 0, 1.")


def test_splits_have_tables_of_their_own() -> None:
    assert "| 10.0 ± 0.0 |" in split_table(seeds_result(), "test_pairs")
    assert len(list(tables_of(seeds_result()))) == 2


def test_arms_are_lines_in_the_order_of_the_study() -> None:
    lines = arm_table(scales_result(), [("hear", "sound"), ("order", "all")]).splitlines()
    assert lines[0] == "| scales | `hear`, sound only | `order` |"
    titles = [arm.title for arm in SCALES.arms]
    expected = [f"| {title} | {10 * place:.1f} |  |" for place, title in enumerate(titles)]
    assert lines[2:6] == expected
    assert lines[6] == "| chance | 25 |  |"


def test_a_result_is_read_back_and_has_a_line_for_each_run(tmp_path: Path) -> None:
    path = result_path(tmp_path, "seeds")
    write_result(path, seeds_result())
    assert read_result(path) == seeds_result()
    assert sum('"arm"' in line for line in path.read_text().splitlines()) == 6


def test_a_page_gets_the_tables_of_the_results(tmp_path: Path) -> None:
    page = "A\n\n<!-- study:scales -->\nold\n<!-- /study:scales -->\n\nB\n"
    missing = fill_page(page, tmp_path)
    assert "old" not in missing
    assert "Not measured yet: `python -m studies.study scales`" in missing
    write_result(result_path(tmp_path, "scales"), scales_result())
    filled = fill_page(missing, tmp_path)
    assert filled.startswith("A\n\n<!-- study:scales -->\n| scales |")
    assert filled.endswith("<!-- /study:scales -->\n\nB\n")
    assert fill_page(filled, tmp_path) == filled


def test_a_table_that_does_not_exist_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(KeyError, match="sizes"):
        fill_page("<!-- study:sizes -->\n<!-- /study:sizes -->", tmp_path)


def test_curves_are_drawn(tmp_path: Path) -> None:
    draw_curves(scales_result(), tmp_path / CURVES)
    with Image.open(tmp_path / CURVES) as picture:
        assert picture.width > 600
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 10


def test_losses_at_the_end_are_told() -> None:
    (text,) = [table for table in tables_of(scales_result()) if "after stage 1" in table]
    assert "| 1 | 3.000 | 3.000 |" in text
    assert "| 0.2 | 2.000 | 2.000 |" in text


@pytest.mark.parametrize("name", PAGES)
def test_the_tables_of_the_pages_are_what_was_measured(name: str) -> None:
    text = (ROOT / name).read_text("utf-8")
    assert "<!-- study:" in text
    assert fill_page(text, RESULTS) == text


def test_every_table_stands_in_a_page() -> None:
    text = "".join((ROOT / name).read_text("utf-8") for name in PAGES)
    assert [name for name in TABLES if f"<!-- study:{name} -->" not in text] == []


@pytest.mark.parametrize("study", sorted({study for study, _ in TABLES.values()}))
def test_shipped_results_are_of_whole_studies(study: str) -> None:
    result = read_result(result_path(RESULTS, study))
    assert (result["steps_scale"], result["limit"], result["options"]) == (1, None, [])
    assert len(result["seeds"]) >= (1 if study == "ablations" else 3)


def test_the_ablations_of_the_paper_are_all_there() -> None:
    titles = " ".join(arm.title for arm in ABLATIONS.arms)
    for part in ("frame position", "mean pooling", "without stage 1", "on sound"):
        assert part in titles
