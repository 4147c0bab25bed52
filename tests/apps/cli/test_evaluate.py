"""`evaluate` in a terminal: what it writes, what it refuses, and what becomes of what fails."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.media import corrupt, write_video
from tests.tiny_chat import Run, media_files
from video_llama.apps.evaluate.examine import Examiner
from video_llama.types import ConfigError

ONE = ("--condition", "all", "--no-progress")


def entries(number: int) -> list[dict[str, object]]:
    clip = media_files()["talkie"].name
    return [{"video": clip, "QA": [{"q": f"What {n}?", "a": "bell"} for n in range(number)]}]


def test_command_writes_table_details_picture_and_page(run: Run, tmp_path: Path) -> None:
    (tmp_path / "q.json").write_text(json.dumps(entries(2)))
    files = {name: tmp_path / f"x.{name}" for name in ("json", "png", "html")}
    status, output, errors = run(
        "evaluate", tmp_path / "q.json", "--media-dir", media_files()["talkie"].parent,
        "--condition", "all", "--condition", "withheld", "--no-progress",
        "--out", files["json"], "--picture", files["png"], "--page", files["html"],
    )  # fmt: skip
    assert status == 0, errors
    assert "withheld" in output
    assert "shuffled" not in output
    found = json.loads(files["json"].read_text())
    assert [answer["condition"] for answer in found["answers"]] == ["all"] * 2 + ["withheld"] * 2
    assert all(path.stat().st_size > 500 for path in files.values())


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("--condition", "blind", "withheld, other"),
        ("--picture", "scores.txt", ".png, .svg, .pdf"),
        ("--out", "nowhere/scores.json", "there is no folder"),
    ],
)
def test_command_refuses_before_the_work(
    run: Run, tmp_path: Path, option: str, value: str, message: str
) -> None:
    (tmp_path / "q.json").write_text(json.dumps(entries(1)))
    status, _, errors = run("evaluate", tmp_path / "q.json", option, tmp_path / value)
    if option == "--condition":
        status, _, errors = run("evaluate", tmp_path / "q.json", option, value)
    assert status == 1
    assert message in errors


def ask_all(run: Run, folder: Path, entries: list[Any], **options: Any) -> tuple[int, str, Any]:
    """Status, errors and details of an evaluation of clips that lie in a folder."""
    text = json.dumps(entries)
    (folder / "q.json").write_text(text, **options)
    out = folder / "out.json"
    out.unlink(missing_ok=True)
    status, _, errors = run("evaluate", folder / "q.json", *ONE, "--out", out)
    return status, errors, json.loads(out.read_text()) if out.exists() else None


def pair(answer: Any = "x", video: Any = "a.mp4", question: Any = "What?") -> dict[str, Any]:
    return {"video": video, "QA": [{"q": question, "a": answer}]}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_video(tmp_path / "a.mp4", num_frames=12)
    corrupt(write_video(tmp_path / "broken.mp4", num_frames=12), 0.05, 1.0)
    (tmp_path / "empty.mp4").touch()
    return tmp_path


def test_numbers_half_an_emoji_and_a_byte_order_mark_are_scored(run: Run, folder: Path) -> None:
    entries = [pair(2), pair(3.0), pair("half \ud83d"), pair("x", question="\ude00?")]
    status, errors, found = ask_all(run, folder, entries, encoding="utf-8-sig")
    assert status == 0, errors
    assert [answer["reference"] for answer in found["answers"]] == ["2", "3", "half \ufffd", "x"]
    assert found["failures"] == []
    assert sum(score["count"] for score in found["scores"]) == 4


@pytest.mark.parametrize(
    ("entry", "reason"),
    [
        (pair(video="gone.mp4"), "gone.mp4: there is no such file"),
        (pair(video="empty.mp4"), "empty.mp4: the file is empty"),
        (pair(video="broken.mp4"), "broken.mp4: "),
        (pair(video=None), "video: null given"),
        (pair(None), "a: null given"),
        (pair(True), "a: true given"),
        (pair(question="what " * 3000), "but the model's context holds"),
    ],
)
def test_one_bad_item_fails_the_command_but_not_the_others(
    run: Run, folder: Path, entry: Any, reason: str
) -> None:
    status, errors, found = ask_all(run, folder, [pair(), entry, pair(question="Why?")])
    assert status == 1
    assert reason in errors
    assert "1 question was not answered" in errors
    assert [answer["question"] for answer in found["answers"]] == ["What?", "Why?"]
    (failure,) = found["failures"]
    assert reason in failure["reason"]


def test_nothing_to_ask_is_found_before_the_model_is_loaded(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "video_llama.apps.evaluate.examine.Examiner.__init__",
        lambda *_, **__: pytest.fail("loaded"),
    )
    status, errors, _ = ask_all(run, folder, [pair(None), pair(video="gone.mp4")])
    assert status == 1
    assert "none of its 2 questions can be asked" in errors
    assert "gone.mp4: there is no such file" in errors


def test_nothing_answered_is_a_failure(run: Run, folder: Path) -> None:
    status, errors, found = ask_all(run, folder, [pair(video="broken.mp4")])
    assert status == 1
    assert "1 question was not answered" in errors
    assert (found["answers"], found["scores"]) == ([], [])


def test_an_interrupt_loses_no_answer(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = Examiner._texts, []

    def interrupted(examiner: Examiner, groups: Any) -> list[str]:
        calls.append(len(groups))
        if len(calls) > 1:
            raise KeyboardInterrupt
        return original(examiner, groups)

    monkeypatch.setattr(Examiner, "_texts", interrupted)
    entries = [pair(), pair(question="A much longer question?")]
    status, _, found = ask_all(run, folder, entries)
    assert status == 130
    assert len(found["answers"]) == 1


def test_details_are_there_when_the_page_fails(
    run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path, *_: Any, **__: Any) -> None:
        raise ConfigError(f"{path}: the page fails")

    (folder / "q.json").write_text(json.dumps([pair()]))
    monkeypatch.setattr("video_llama.apps.evaluate.report.write_page", fail)
    out = folder / "out.json"
    options = (*ONE, "--out", out, "--page", folder / "page.html")
    status, _, _ = run("evaluate", folder / "q.json", *options)
    assert status == 1
    assert len(json.loads(out.read_text())["answers"]) == 1
