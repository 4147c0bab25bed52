"""`batch`: answers in order, errors per item, going on after a break, and never a mixed-up file."""

from __future__ import annotations

import fcntl
import json
from pathlib import Path
from typing import Any

import pytest

from tests.tiny_chat import Run, answer, media_files, tiny_chat
from video_llama.apps.cli.main import main
from video_llama.chat.batch import BatchAnswerer

SHORT = ["--max-new-tokens", 6, "--no-progress"]


def write_lines(path: Path, entries: list[Any]) -> Path:
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def read_lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def mixed() -> list[dict[str, Any]]:
    files = {name: str(path) for name, path in media_files().items()}
    return [
        {
            "id": "clip",
            "question": "What happens in it, from its beginning?",
            "video": files["talkie"],
        },
        {"id": "deaf", "question": "What?", "video": files["talkie"], "use_audio": False},
        {"question": "And what is this?", "image": files["picture"]},
        {"id": 7, "question": "A sound?", "audio": [files["wav"], files["flac"]]},
        {"id": "text", "question": "Nothing to see?"},
        {
            "id": "all",
            "question": "All?",
            "media": [files["picture"], {"path": files["silent"], "num_frames": 2}],
        },
        {"id": "sampled", "question": "Sampled?", "options": {"temperature": 1.5, "seed": 3}},
        {
            "id": "beams",
            "question": "Beams?",
            "image": files["picture"],
            "options": {"num_beams": 2},
        },
        {
            "id": "stern",
            "question": "Again?",
            "options": {"repetition_penalty": 5, "min_new_tokens": 4},
        },
    ]


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", mixed())


def one_at_a_time(overrides: tuple[str, ...] = ()) -> list[str]:
    chat, said = tiny_chat(*overrides), []
    for entry in mixed():
        session = chat.start()
        for key in ("video", "image", "audio"):
            paths = entry.get(key, [])
            for path in paths if isinstance(paths, list) else [paths]:
                session.add(path, key, use_audio=entry.get("use_audio", True))  # type: ignore[arg-type]
        for item in entry.get("media", []):
            given = item if isinstance(item, dict) else {"path": item}
            session.add(given["path"], num_frames=given.get("num_frames"))
        options = {"max_new_tokens": 6, **entry.get("options", {})}
        said.append(answer(session, entry["question"], **options))
    return said


def test_answers_are_those_of_one_at_a_time_in_order(
    run: Run, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.jsonl"
    status, output, errors = run("batch", source, target, *SHORT, "--batch-size", 4)
    assert (status, output) == (0, f"{target}\n")
    found = read_lines(target)
    assert [entry["id"] for entry in found] == [e.get("id", i + 1) for i, e in enumerate(mixed())]
    assert [entry["answer"] for entry in found] == one_at_a_time()
    assert all(entry["num_answer_tokens"] <= 6 for entry in found)
    assert "silent.mp4 has no sound track" in found[5]["notices"][0]
    assert "could not be answered" not in errors


def test_a_broken_line_or_file_is_an_error_of_its_own(run: Run, tmp_path: Path) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    picture = str(media_files()["picture"])
    entries: list[Any] = [
        {"question": "Fine?", "image": picture},
        "not json",
        "[1, 2]",
        {"id": "none", "video": picture},
        {"id": "blank", "question": "  "},
        {"id": "missing", "question": "What?", "video": "missing.mp4"},
        {"id": "broken", "question": "What?", "video": broken.name},
        {"id": "kind", "question": "What?", "video": picture},
        {"id": "key", "question": "What?", "vidio": "a.mp4"},
        {"id": "option", "question": "What?", "options": {"temperature": -1}},
        {"id": "long", "question": "word " * 5000},
        {"id": True, "question": "What?"},
        {"id": "last", "question": "Fine?", "image": picture},
    ]
    target = tmp_path / "out.jsonl"
    source = write_lines(tmp_path / "in.jsonl", entries)
    status, _, errors = run("batch", source, target, *SHORT)
    assert status == 1
    found = read_lines(target)
    assert len(found) == len(entries)
    assert [i for i, entry in enumerate(found) if "answer" in entry] == [0, 12]
    assert found[0]["answer"] == found[12]["answer"]
    told = [
        "not JSON",
        "no JSON object",
        "question",
        "question",
        "no such file",
        "not a media file",
    ]
    told += [
        "picture",
        "did you mean 'video'",
        "temperature",
        "context holds",
        "id: True given, a text",
    ]
    for entry, message in zip(found[1:12], told, strict=True):
        assert message in entry["error"], entry
    assert "11 of 13 could not be answered" in errors


@pytest.mark.parametrize(
    "torn", [b"", b'{"id": 7, "que', b'{"id": 7, "question": "A sound?", "answ', b"{"]
)
def test_a_rerun_goes_on_after_what_is_written(
    run: Run, source: Path, tmp_path: Path, torn: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, target = tmp_path / "whole.jsonl", tmp_path / "out.jsonl"
    run("batch", source, whole, *SHORT)
    lines = whole.read_bytes().splitlines(keepends=True)
    target.write_bytes(b"".join(lines[:3]) + torn)
    asked: list[object] = []
    original = BatchAnswerer.answer

    def spy(self: BatchAnswerer, requests: Any) -> Any:
        asked.extend(request.request_id for request in requests)
        return original(self, requests)

    monkeypatch.setattr(BatchAnswerer, "answer", spy)
    status, _, errors = run("batch", source, target, *SHORT)
    assert status == 0
    assert "3 of 9 are answered already" in errors
    assert target.read_bytes() == whole.read_bytes()
    assert asked == [entry["id"] for entry in read_lines(whole)[3:]]
    asked.clear()
    assert run("batch", source, target, *SHORT)[0] == 0
    assert asked == []


def test_the_answers_to_other_questions_are_left_alone(
    run: Run, source: Path, tmp_path: Path
) -> None:
    target = tmp_path / "out.jsonl"
    run("batch", source, target, *SHORT)
    before = target.read_bytes()
    other = write_lines(tmp_path / "other.jsonl", [{"id": "clip", "question": "Another one?"}])
    longer = write_lines(tmp_path / "longer.jsonl", [{"id": "x", "question": "?"}, *mixed()])
    for wrong in (other, longer):
        status, _, errors = run("batch", wrong, target, *SHORT)
        assert status == 1
        assert "--overwrite" in errors
    assert target.read_bytes() == before
    assert run("batch", other, target, *SHORT, "--overwrite")[0] == 0
    assert [entry["question"] for entry in read_lines(target)] == ["Another one?"]


@pytest.mark.parametrize(
    "change", [{"video": "other.mp4"}, {"options": {"temperature": 0.5}}, {"use_audio": False}]
)
def test_the_answer_to_the_same_words_about_something_else_is_not_taken(
    run: Run, tmp_path: Path, change: dict[str, Any]
) -> None:
    target, entry = tmp_path / "out.jsonl", {"question": "What?", "video": "missing.mp4"}
    run("batch", write_lines(tmp_path / "in.jsonl", [entry]), target, *SHORT)
    before = target.read_bytes()
    other = write_lines(tmp_path / "other.jsonl", [entry | change])
    status, _, errors = run("batch", other, target, *SHORT)
    assert (status, target.read_bytes()) == (1, before)
    assert "line 1 is no answer to that question" in errors


@pytest.mark.parametrize(
    "content", ["one line of somebody's notes", '{"id": "clip", "question": "Mine?"', "{}\n", "\0"]
)
def test_a_file_of_something_else_is_left_alone(
    run: Run, source: Path, tmp_path: Path, content: str
) -> None:
    target = tmp_path / "notes.txt"
    target.write_text(content)
    status, _, errors = run("batch", source, target, *SHORT)
    assert (status, target.read_text()) == (1, content)
    assert "--overwrite" in errors


@pytest.mark.parametrize("more", [[], ["--overwrite"]])
def test_answers_are_not_written_over_the_questions(
    run: Run, tmp_path: Path, more: list[str]
) -> None:
    source, link = tmp_path / "in.jsonl", tmp_path / "link.jsonl"
    content = '{"id": "a", "question": "One?"}\n{"id": "b", "question": "Two?"}'
    source.write_text(content)
    link.symlink_to(source)
    for target in (source, link):
        status, _, errors = run("batch", source, target, *SHORT, *more)
        assert (status, source.read_text()) == (1, content)
        assert "it holds the questions; name another file" in errors


def test_answers_go_to_a_file(run: Run, source: Path) -> None:
    status, _, errors = run("batch", source, "/dev/null", *SHORT)
    assert status == 1
    assert "/dev/null: it is a device or a pipe" in errors


def test_a_mark_of_the_byte_order_is_no_error(run: Run, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes(b'\xef\xbb\xbf{"id": "a", "question": "One?"}\r\n')
    assert run("batch", source, target, *SHORT)[0] == 0
    assert "answer" in read_lines(target)[0]


def test_two_runs_do_not_write_one_file(run: Run, source: Path, tmp_path: Path) -> None:
    target = tmp_path / "out.jsonl"
    with target.open("ab") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        status, _, errors = run("batch", source, target, *SHORT)
    assert status == 1
    assert "another `video-llama batch` writes it" in errors
    assert target.read_bytes() == b""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{folder}/none.jsonl", "{folder}/out.jsonl"], "none.jsonl: cannot be read: no such file"),
        (["{folder}/empty.jsonl", "{folder}/out.jsonl"], "empty.jsonl: it is empty"),
        (["{folder}/in.jsonl", "{folder}"], "cannot be written: is a directory"),
        (["{folder}/in.jsonl", "{folder}/no/out.jsonl"], "cannot be written: no such file"),
        (["{folder}/in.jsonl", "{folder}/o", "--batch-size", "0"], "--batch-size: 0 given"),
        (["{folder}/in.jsonl", "{folder}/o", "--temperature", "-1"], "temperature: -1.0 given"),
    ],
)
def test_a_wrong_call_is_one_line(
    source: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    argv: list[str],
    message: str,
) -> None:
    (tmp_path / "empty.jsonl").write_text("\n\n")
    monkeypatch.setattr(
        "video_llama.config.build.build_model", lambda cfg, **_: pytest.fail("loaded")
    )
    assert main(["batch", *(word.format(folder=source.parent) for word in argv)]) == 1
    assert message in capsys.readouterr().err


def test_what_failed_is_tried_again_in_its_place(run: Run, tmp_path: Path) -> None:
    picture, late = media_files()["picture"], tmp_path / "late.png"
    entries = [
        {"id": 0, "question": "Fine?", "image": str(picture)},
        {"id": 1, "question": "Late?", "image": late.name},
        {"id": 2, "question": "Never?", "image": "never.png"},
        {"id": 3, "question": "Fine?"},
    ]
    source, target = write_lines(tmp_path / "in.jsonl", entries), tmp_path / "out.jsonl"
    status, _, errors = run("batch", source, target, *SHORT)
    assert status == 1
    assert "2 of 4 could not be answered" in errors
    assert f"failed (1): {tmp_path}/never.png: there is no such file" in errors
    before = read_lines(target)
    late.write_bytes(picture.read_bytes())
    target.chmod(0o600)
    status, _, errors = run("batch", source, target, *SHORT)
    assert status == 1
    assert "2 of 4 are answered already" in errors
    assert "2 failed before and are tried again" in errors
    assert "1 of 2 could not be answered" in errors
    after = read_lines(target)
    assert [entry["id"] for entry in after] == [0, 1, 2, 3]
    assert [n for n in range(4) if after[n] != before[n]] == [1]
    assert after[1]["answer"] == run_alone(run, tmp_path, entries[1])
    assert target.stat().st_mode & 0o777 == 0o600
    assert not [*tmp_path.glob(".*.tmp")]


def run_alone(run: Run, folder: Path, entry: dict[str, Any]) -> object:
    run("batch", write_lines(folder / "one.jsonl", [entry]), folder / "one.out", *SHORT)
    return read_lines(folder / "one.out")[0]["answer"]


def test_a_crash_while_trying_again_loses_no_answer(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = [{"id": n, "question": "What?", "image": f"{n % 2}.png"} for n in range(6)]
    (tmp_path / "0.png").write_bytes(media_files()["picture"].read_bytes())
    source, target = write_lines(tmp_path / "in.jsonl", entries), tmp_path / "out.jsonl"
    run("batch", source, target, *SHORT)
    before = target.read_bytes()

    def crash(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Path, "replace", crash)
        run("batch", source, target, *SHORT)
    assert target.read_bytes() == before


@pytest.mark.parametrize(
    ("encoding", "text", "advice"),
    [("gbk", "这是什么", "it looks like GBK"), ("cp1252", "Où est le café ?", "save it as UTF-8")],
)
def test_another_encoding_is_not_answered_as_noise(
    run: Run, tmp_path: Path, encoding: str, text: str, advice: str
) -> None:
    lines = [json.dumps({"question": t}, ensure_ascii=False) for t in ("One?", text)]
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_bytes("\n".join(lines).encode(encoding))
    status, _, errors = run("batch", source, target, *SHORT)
    assert status == 1
    first, second = read_lines(target)
    assert "answer" in first
    assert second["error"].startswith("line 2 is not UTF-8: byte 0x")
    assert advice in second["error"]
    assert second["error"] in errors


def test_two_bytes_a_character_are_refused(run: Run, tmp_path: Path) -> None:
    source = tmp_path / "in.jsonl"
    source.write_bytes(json.dumps({"question": "One?"}).encode("utf-16"))
    status, _, errors = run("batch", source, tmp_path / "out.jsonl", *SHORT)
    assert status == 1
    assert "in.jsonl:1: not JSON in UTF-8: it is UTF-16" in errors


def test_half_an_emoji_is_answered_and_written(run: Run, tmp_path: Path) -> None:
    source, target = tmp_path / "in.jsonl", tmp_path / "out.jsonl"
    source.write_text('{"id": "\\ud83d", "question": "half \\ud83d?"}\n')
    assert run("batch", source, target, *SHORT)[0] == 0
    assert read_lines(target)[0]["question"] == "half \ud83d?"
    assert run("batch", source, target, *SHORT)[0] == 0


def test_lines_that_no_model_can_answer_load_none(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("video_llama.apps.cli.batch._answerer", lambda *_: pytest.fail("loaded"))
    source, target = write_lines(tmp_path / "in.jsonl", ["no json", "[]"]), tmp_path / "out.jsonl"
    for _ in range(2):
        status, _, errors = run("batch", source, target, *SHORT)
        assert status == 1
        assert "2 of 2 could not be answered" in errors
        assert len(read_lines(target)) == 2
