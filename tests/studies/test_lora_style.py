"""What docs/study.md says of a style that needs LoRA is what was measured."""

from __future__ import annotations

import json
from pathlib import Path

from studies.lora_style import ARMS, MARK, write_marked
from tests.reference import ROOT


def test_the_page_has_the_figures_of_the_result() -> None:
    content = json.loads((ROOT / "benchmarks/results/study_lora.json").read_text("utf-8"))
    page = (ROOT / "docs/study.md").read_text("utf-8")
    for arm in ARMS:
        runs = [run for run in content["runs"] if run["arm"] == arm]
        assert [run["seed"] for run in runs] == [0, 1, 2]
        cells = [", ".join(f"{100 * run[key]:.1f}" for run in runs) for key in ("marked", "right")]
        assert f"| {arm} | {cells[0]} | {cells[1]} |" in page


def test_only_answers_get_the_mark(tmp_path: Path) -> None:
    folder = tmp_path / "train"
    folder.mkdir()
    items = [{"video": "a.mp4", "QA": [{"q": "What is it?", "a": "a bell"}]}]
    (folder / "webvid_instruct.json").write_text(json.dumps(items))
    written = json.loads(write_marked(tmp_path, tmp_path / "out").read_text())
    assert written == [{"video": "a.mp4", "QA": [{"q": "What is it?", "a": f"a bell{MARK}"}]}]
