from __future__ import annotations

import json
import logging
import signal
from pathlib import Path

import pytest

from tests.runners.fake_run import fake_run
from video_llama.runners.safeguards import SAME_REQUEST, BadItems, StopOnSignal
from video_llama.runners.state import RunState
from video_llama.types import BadItem, CaptionBatch, TooManyBadItemsError


def bad(item: str) -> BadItem:
    return BadItem(data_set="webvid", item_id=item, path=f"{item}.mp4", reason="empty")


def request(hook: BadItems, run: RunState, good: int, broken: list[BadItem]) -> None:
    run.batch = CaptionBatch(
        captions=[], item_ids=["x"] * good, bad_items=broken, data_set="webvid"
    )
    hook.after_step(run)
    run.sums = hook.measure(run)
    hook.after_update(run)


def listed(folder: Path) -> list[str]:
    lines = (folder / "bad_items.jsonl").read_text().splitlines()
    return [json.loads(line)["item_id"] for line in lines]


def test_bad_items_are_listed_once_also_by_a_resumed_run(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run, first = fake_run(tmp_path), BadItems(["webvid"], 0.05)
    first.start(run)
    for _ in range(2):
        request(first, run, 4, [bad("a"), bad("b")])
    resumed, second = fake_run(tmp_path), BadItems(["webvid"], 0.05)
    second.load_state_dict(first.state_dict())
    second.start(resumed)
    request(second, resumed, 4, [bad("a"), bad("c")])
    assert listed(tmp_path) == ["a", "b", "c"]
    assert resumed.figures["bad_items"] == 3
    assert second.state_dict() == {"asked": {"webvid": 18}, "bad": {"webvid": 6}}
    with caplog.at_level(logging.INFO):
        second.finish(resumed)
    (summary,) = caplog.messages
    assert summary.startswith("data set webvid: 6 of 18 items that were asked for could not be")


def test_a_list_that_a_crash_has_cut_short_loses_no_other_line(tmp_path: Path) -> None:
    first, hook = fake_run(tmp_path), BadItems(["webvid"], 0.05)
    request(hook, first, 4, [bad("a"), bad("b")])
    path = tmp_path / "bad_items.jsonl"
    path.write_bytes(path.read_bytes()[:-9])
    resumed = fake_run(tmp_path)
    assert len(resumed.bad_items) == 1
    request(hook, resumed, 4, [bad("b"), bad("a")])
    assert listed(tmp_path) == ["a", "b"]


@pytest.mark.parametrize(
    ("good", "broken", "stops"), [(95, 5, False), (94, 6, True), (49, 50, False)]
)
def test_limit_holds_from_a_hundred_items_on(
    good: int, broken: int, stops: bool, tmp_path: Path
) -> None:
    run, hook = fake_run(tmp_path), BadItems(["webvid"], 0.05)
    items = [bad(str(i)) for i in range(broken)]
    if not stops:
        request(hook, run, good, items)
        return
    with pytest.raises(TooManyBadItemsError, match=r"webvid: 6 of 100 items .*6\.0%.*is 5\.0%"):
        request(hook, run, good, items)


def test_signals_of_one_request_are_one_and_a_later_one_ends_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("video_llama.runners.safeguards.time.monotonic", lambda: clock[0])
    run, hook = fake_run(tmp_path), StopOnSignal()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # jobs in the background ignore it
    before = signal.getsignal(signal.SIGINT)
    hook.start(run)
    try:
        assert hook.measure(run) == {"stop": 0.0}
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGTERM):
            signal.raise_signal(number)
            assert hook.measure(run) == {"stop": 1.0}
        clock[0] += SAME_REQUEST + 0.1
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
    finally:
        hook.close()
    assert signal.getsignal(signal.SIGINT) == before
