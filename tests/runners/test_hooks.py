from __future__ import annotations

import io
import json
import logging
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from video_llama.runners.hooks import JsonLog, Progress, crossed
from video_llama.runners.safeguards import SAME_REQUEST, BadItemList, BadItems, StopOnSignal
from video_llama.runners.settings import RunSettings
from video_llama.types import (
    BadItem,
    CaptionBatch,
    ConfigError,
    TooManyBadItemsError,
    plain_message,
)


class OneProcess:
    """A world with one process in it."""

    is_main = True
    size = 1
    device = torch.device("cpu")

    def gather(self, values: list[Any]) -> list[Any]:
        return values

    def on_main(self, function: Callable[[], Any]) -> Any:
        return function()


def fake_runner(folder: Path, **values: Any) -> Any:
    """What the hooks read of a runner."""
    figures = {"eta_s": 3.0, "samples_per_s": 8.0, "data_wait": 0.25, "memory_gb": 1.5}
    defaults = {
        **{"step": 0, "previous_step": 0, "num_steps": 8, "loss": 1 / 3, "grad_norm": 0.1},
        **{"learning_rate": 1e-4, "evaluations": [], "sums": {}, "figures": figures},
    }
    world: Any = OneProcess()
    defaults |= {"world": world, "bad_items": BadItemList(folder, world)}
    settings = RunSettings(log_every=2)
    return SimpleNamespace(**{**defaults, **values}, folder=folder, settings=settings)


@pytest.mark.parametrize(
    ("before", "now", "every", "due"),
    [(0, 1, 2, False), (1, 2, 2, True), (2, 3, 2, False), (2, 6, 5, True), (5, 9, 5, False)],
)
def test_what_is_due_between_updates_happens_at_the_next(
    before: int, now: int, every: int, due: bool
) -> None:
    assert crossed(before, now, every) is due
    assert crossed(before, now, 0) is False


def updates(runner: Any, steps: int) -> Iterator[int]:
    for step in range(runner.step + 1, steps + 1):
        runner.previous_step, runner.step = runner.step, step
        yield step


def test_log_is_exact_and_has_a_line_where_one_is_due(tmp_path: Path) -> None:
    runner, log = fake_runner(tmp_path), JsonLog()
    log.start(runner)
    for _ in updates(runner, 5):
        log.after_update(runner)
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]
    assert lines[0]["loss"] == 1 / 3
    assert {"lr", "grad_norm", "samples_per_s", "data_wait"} <= lines[0].keys()


def test_resumed_log_loses_what_came_after_the_checkpoint(tmp_path: Path) -> None:
    text = '{"step": 2}\n[1]\n{"step": 4}\n{"loss": 3}\n{"step": 6}\n{"step": 8, "lo'
    (tmp_path / "log.jsonl").write_text(text)
    log = JsonLog()
    log.start(fake_runner(tmp_path, step=4))
    log.close()
    assert (tmp_path / "log.jsonl").read_text() == '{"step": 2}\n{"step": 4}\n'


def test_progress_is_plain_lines_where_there_is_no_terminal(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner, progress = fake_runner(tmp_path), Progress()
    runner.figures["bad_items"] = 2.0
    progress.start(runner)
    with caplog.at_level(logging.INFO):
        for _ in updates(runner, 3):
            progress.after_update(runner)
    progress.close()
    assert caplog.messages == [
        "step 2/8: loss 0.3333, lr 0.0001, 8.0 samples/s, waiting for data 25%, 1.5 GB, "
        "0:00:03 left, 2 bad items"
    ]


def test_progress_is_a_bar_on_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    runner, progress = fake_runner(tmp_path, num_steps=4), Progress()
    progress.start(runner)
    for _ in updates(runner, 4):
        progress.after_update(runner)
    progress.close()
    assert "4/4" in terminal.getvalue()
    assert "loss 0.3333, lr 0.0001, 8.0 samples/s" in terminal.getvalue()
    assert caplog.messages == []


def bad(item: str) -> BadItem:
    return BadItem(data_set="webvid", item_id=item, path=f"{item}.mp4", reason="empty")


def ask(hook: BadItems, runner: Any, good: int, broken: list[BadItem]) -> None:
    runner.batch = CaptionBatch(
        captions=[], item_ids=["x"] * good, bad_items=broken, data_set="webvid"
    )
    hook.after_step(runner)
    runner.sums = hook.measure(runner)
    hook.after_update(runner)


def listed(folder: Path) -> list[str]:
    lines = (folder / "bad_items.jsonl").read_text().splitlines()
    return [json.loads(line)["item_id"] for line in lines]


def test_bad_items_are_listed_once_also_by_a_resumed_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    runner, first = fake_runner(tmp_path), BadItems(["webvid"], 0.05)
    first.start(runner)
    for _ in range(2):
        ask(first, runner, 4, [bad("a"), bad("b")])
    resumed, second = fake_runner(tmp_path), BadItems(["webvid"], 0.05)
    second.load_state_dict(first.state_dict())
    second.start(resumed)
    ask(second, resumed, 4, [bad("a"), bad("c")])
    assert listed(tmp_path) == ["a", "b", "c"]
    assert resumed.figures["bad_items"] == 3
    assert second.state_dict() == {"asked": {"webvid": 18}, "bad": {"webvid": 6}}
    with caplog.at_level(logging.INFO):
        second.finish(resumed)
    (summary,) = caplog.messages
    assert summary.startswith("data set webvid: 6 of 18 items that were asked for could not be")


def test_a_list_that_a_crash_has_cut_short_loses_no_other_line(tmp_path: Path) -> None:
    first, hook = fake_runner(tmp_path), BadItems(["webvid"], 0.05)
    ask(hook, first, 4, [bad("a"), bad("b")])
    path = tmp_path / "bad_items.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    resumed = fake_runner(tmp_path)
    assert len(resumed.bad_items) == 1
    ask(hook, resumed, 4, [bad("b"), bad("a")])
    assert listed(tmp_path) == ["a", "b"]


@pytest.mark.parametrize(
    ("good", "broken", "stops"), [(95, 5, False), (94, 6, True), (49, 50, False)]
)
def test_limit_holds_from_a_hundred_items_on(
    good: int, broken: int, stops: bool, tmp_path: Path
) -> None:
    runner, hook = fake_runner(tmp_path), BadItems(["webvid"], 0.05)
    items = [bad(str(i)) for i in range(broken)]
    if not stops:
        ask(hook, runner, good, items)
        return
    with pytest.raises(TooManyBadItemsError, match=r"webvid: 6 of 100 items .*6\.0%.*is 5\.0%"):
        ask(hook, runner, good, items)


def test_message_of_a_loading_process_has_no_traceback() -> None:
    text = "Caught ConfigError in DataLoader worker process 0.\nOriginal Traceback ...\n"
    error = ConfigError(f"{text}video_llama.types.ConfigError: too long\n")
    assert plain_message(error) == "too long"
    assert plain_message(ConfigError("too long")) == "too long"


def test_signals_of_one_request_are_one_and_a_later_one_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("video_llama.runners.safeguards.time.monotonic", lambda: clock[0])
    runner, hook = fake_runner(tmp_path), StopOnSignal()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
    before = signal.getsignal(signal.SIGINT)
    hook.start(runner)
    try:
        assert hook.measure(runner) == {"stop": 0.0}
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
            assert hook.measure(runner) == {"stop": 1.0}
        clock[0] += SAME_REQUEST + 0.1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        hook.close()
    assert signal.getsignal(signal.SIGINT) == before
