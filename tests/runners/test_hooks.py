from __future__ import annotations

import io
import json
import logging
import sys
from datetime import datetime
from pathlib import Path

import pytest

from tests.runners.fake_run import fake_run, updates
from video_llama.runners.hooks import JsonLog, Progress


def test_log_is_exact_and_has_a_line_where_one_is_due(tmp_path: Path) -> None:
    run, log = fake_run(tmp_path), JsonLog()
    log.start(run)
    for _ in updates(run, 5):
        log.after_update(run)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[0]["loss"] == 1 / 3
    assert {"lr", "grad_norm", "samples_per_s", "data_wait"} <= lines[0].keys()
    assert datetime.fromisoformat(lines[0]["time"]).tzinfo is not None


def test_resumed_log_loses_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    text = '{"step": 2}\n[1]\n{"step": 4}\n{"loss": 3}\n{"step": 6}\n{"step": 8, "lo'
    (tmp_path / "log.jsonl").write_text(text)
    log = JsonLog()
    log.start(fake_run(tmp_path, step=4))
    log.close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 2}\n{"step": 4}\n'


def test_progress_is_plain_lines_where_there_is_no_terminal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, progress = fake_run(tmp_path), Progress()
    run.figures["bad_items"] = 2.0
    progress.start(run)
    with caplog.at_level(logging.INFO):
        for _ in updates(run, 3):
            progress.after_update(run)
    progress.close()
    assert caplog.messages == [
        "step 2/8: loss 0.3333, lr 0.0001, 8.0 samples/s, waiting for data 25%, 1.5 GB, "
        "0:00:03 left, 2 bad items"
    ]


@pytest.mark.parametrize("columns", [50, 80, 120, 200])
def test_progress_is_a_bar_that_fits_the_terminal(
    columns: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", str(columns))
    monkeypatch.setenv("LINES", "40")
    run, progress = fake_run(tmp_path, num_steps=4), Progress()
    progress.start(run)
    for _ in updates(run, 4):
        progress.after_update(run)
    progress.close()
    last = terminal.getvalue().replace("\n", "\r").strip("\r").split("\r")[-1].strip()
    assert len(last) <= columns
    assert "4/4, loss 0.3333" in last
    assert last.count(" left") == 1  # one estimate, and none of tqdm's beside it
    texts = ["8.0 samples/s", "waiting for data 25%", "lr 0.0001", "1.5 GB"]
    shown = [text for text in texts if text in last]
    assert shown == texts[: {50: 0, 80: 1, 120: 4, 200: 4}[columns]]
    assert caplog.messages == []
