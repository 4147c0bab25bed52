"""`ask` and `chat`: what they print, in which order things are checked, and what lines do."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.reference import ROOT
from tests.tiny_chat import Run, media_files
from video_llama.apps.cli.main import main
from video_llama.chat.session import Session
from video_llama.common.io import package_file

SHORT = ["--max-new-tokens", "6"]
JSON_KEYS = {
    "answer": str,
    "prompt": str,
    "media": list,
    "num_prompt_tokens": int,
    "num_answer_tokens": int,
    "finished": bool,
    "timings": dict,
    "notices": list,
}
MEDIA_KEYS = {
    "path": str,
    "kind": str,
    "frames": int,
    "frame_seconds": list,
    "sound_present": (bool, type(None)),
    "sound_used": bool,
    "sound_seconds": list,
    "num_tokens": int,
    "timings": dict,
}


@pytest.fixture
def unloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that must not be loaded."""

    def fail(cfg: object, **_: object) -> None:
        pytest.fail("the model was loaded before the request was checked")

    monkeypatch.setattr("video_llama.config.build.build_model", fail)


def test_the_answer_of_files_in_one_folder_is_the_same(tmp_path: Path) -> None:
    preset = package_file("presets/tiny")
    shutil.copytree(preset / "llama", tmp_path / "decoder")
    for number, file in enumerate(sorted(preset.glob("*.safetensors"))):
        shutil.copy(file, tmp_path / f"{number}.bin")

    def answer(*options: object) -> dict[str, Any]:
        code = "import sys; from video_llama.apps.cli.main import main; sys.exit(main())"
        words = ["ask", media_files()["talkie"], "What happens?", "--json", *options]
        command = [sys.executable, "-c", code, *map(str, words)]
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
        details = json.loads(done.stdout)
        return {key: details[key] for key in ("answer", "prompt", "num_answer_tokens")}

    assert answer("--weights", tmp_path) == answer()


@pytest.mark.parametrize(
    ("names", "sound"),
    [
        (["talkie"], [True]),
        (["silent"], [False]),
        (["picture"], [None]),
        (["wav"], [True]),
        (["turned"], [False]),
        (["talkie", "picture"], [True, None]),
    ],
)
def test_ask_answers_about_files(run: Run, names: list[str], sound: list[bool | None]) -> None:
    paths = [media_files()[name] for name in names]
    status, output, errors = run("ask", *paths, "What is it?", "--json", *SHORT)
    assert status == 0
    assert errors == ""
    details = json.loads(output)
    assert {key: type(value) for key, value in details.items()} == JSON_KEYS
    assert [item["path"] for item in details["media"]] == [str(path) for path in paths]
    assert [item["sound_present"] for item in details["media"]] == sound
    assert [item["sound_used"] for item in details["media"]] == [bool(s) for s in sound]
    for item in details["media"]:
        assert item.keys() == MEDIA_KEYS.keys()
        assert all(isinstance(item[key], kind) for key, kind in MEDIA_KEYS.items())
        assert item["frames"] == (0 if item["kind"] == "audio" else len(item["frame_seconds"]) or 1)
        assert len(item["sound_seconds"]) == (8 if item["sound_used"] else 0)
        assert item["timings"].keys() == {"decode", "encode"}
    assert details["timings"].keys() == {"load", "first_token", "generate"}
    assert details["prompt"].count("<ImageHere>") == sum(i["num_tokens"] for i in details["media"])
    assert details["num_answer_tokens"] == 6
    silent = any("has no sound track" in notice for notice in details["notices"])
    assert silent is (False in sound)


def test_ask_prints_the_answer_and_notes_apart(run: Run) -> None:
    path = media_files()["silent"]
    _, details, _ = run("ask", path, "What?", "--json", *SHORT)
    status, output, errors = run("ask", path, "What?", *SHORT)
    assert status == 0
    assert output == json.loads(details)["answer"] + "\n"
    assert "note: silent.mp4 has no sound track" in errors
    assert all(line.startswith("note: ") for line in errors.splitlines())


def test_ask_does_not_listen_when_told_so(run: Run) -> None:
    path = media_files()["talkie"]
    _, output, _ = run("ask", path, "What?", "--no-audio", "--num-frames", 3, "--json", *SHORT)
    item = json.loads(output)["media"][0]
    assert (item["sound_present"], item["sound_used"], item["frames"]) == (True, False, 3)


def test_a_seed_repeats_an_answer(run: Run) -> None:
    def sampled(seed: int) -> str:
        options = ["--temperature", 1.5, "--top-p", 1, "--seed", seed, *SHORT]
        return run("ask", media_files()["picture"], "What?", *options)[1]

    assert sampled(1) == sampled(1)
    assert len({sampled(seed) for seed in range(3)}) > 1


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["{picture}"], r"the last argument is the question, but .*picture.png is a file: ask"),
        (["{picture}", "{wav}"], r"the last argument is the question, but .*sound.wav is a file"),
        (["What?"], r"one argument given \('What\?'\), a file and a question expected"),
        (["x" * 5000], r"one argument given \('x+'\), a file"),
        (["{picture}", ""], r"the question is empty"),
        (["missing.mp4", "What?"], r"missing.mp4: there is no such file"),
        (["new\nline.mp4", "What?"], r"new line.mp4: there is no such file"),
        (["/", "What?"], r"/: it is a folder"),
        (["{picture}", "What?", "--temperature", "-1"], r"temperature: -1.0 given, .*0 to 100"),
        (["{picture}", "What?", "--cfg-path", "no.yaml"], r"no.yaml: no such file"),
        (["{picture}", "What?", "--options", "modle.ckpt=a"], r"'modle.ckpt=a': .*'model'"),
        (["{picture}", "What?", "--options", "model.image_size=big"], r"model.image_size: .*big"),
    ],
)
@pytest.mark.usefixtures("unloaded")
def test_a_wrong_request_is_one_line_before_the_model_is_loaded(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    assert main(["ask", *(word.format(**media_files()) for word in argv)]) == 1
    output, errors = capsys.readouterr()
    assert output == ""
    assert len(errors.splitlines()) == 1
    assert re.match(f"video-llama: error: .*{message}", errors)


def test_chat_does_what_its_lines_say(run: Run) -> None:
    files = media_files()
    lines = [
        "/media",
        f"/add {files['silent']}",
        "What happens?",
        "/add missing.mp4",
        "/add",
        f"/add '{files['picture']}'",
        "/media",
        "And this?",
        "/foo bar",
        "/add ~nosuchuser/x",
        "   ",
        " /is a question",
        "/restart",
        "/media",
        "/quit",
        "never asked",
    ]
    status, output, errors = run("chat", *SHORT, stdin="\n".join(lines))
    assert status == 0
    said = output.splitlines()
    silent = f"video: {files['silent']} (8 frames, without sound)"
    picture = f"image: {files['picture']}"
    assert said[:2] == ["nothing yet: /add FILE", silent]
    assert said[3:6] == [picture, silent, picture]
    assert said[8:] == ["the conversation and the files are forgotten", "nothing yet: /add FILE"]
    told = errors.splitlines()
    assert [line for line in told if line.startswith("error: ")] == [
        "error: missing.mp4: there is no such file",
        "error: /add needs the name of a file: /add clip.mp4",
        "error: there is no command /foo; /help lists them",
        "error: ~nosuchuser/x: there is no user of that name",
    ]
    notes = [line for line in told if line.startswith("note: ")]
    assert len(notes) == len(set(notes))
    assert "note: silent.mp4 has no sound track; the answer is from its frames only" in notes


def test_chat_begins_with_the_files_given(run: Run) -> None:
    files = media_files()
    status, output, _ = run("chat", files["talkie"], files["wav"], stdin="/media\n/help\n")
    assert status == 0
    talkie = f"video: {files['talkie']} (8 frames, with sound)"
    wav = f"audio: {files['wav']} (with sound)"
    assert output.splitlines()[:4] == [talkie, wav, talkie, wav]
    assert "/restart" in output


def test_an_interrupt_stops_the_answer_but_not_the_chat(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Session.ask

    def interrupted(self: Session, question: str, **options: Any) -> Any:
        pieces = original(self, question, **options)
        if question == "stop":
            raise KeyboardInterrupt
        return pieces

    monkeypatch.setattr(Session, "ask", interrupted)
    status, output, _ = run("chat", *SHORT, stdin="stop\n/media\n")
    assert status == 0
    assert output == "\nnothing yet: /add FILE\n"


def test_an_interrupted_command_says_so(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("video_llama.apps.cli.ask.config_of", interrupt)
    status, _, errors = run("ask", media_files()["picture"], "What?")
    assert status == 130
    assert errors == "\nvideo-llama: interrupted\n"


def test_neither_answers_nor_notes_steer_the_terminal(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Session, "ask", lambda *_, **__: iter(["a\x1b", "[2J\r\n", "\tb"]))
    notice = ["clip\x1b[31m.mp4 is silent"]
    monkeypatch.setattr("video_llama.chat.engine._stage_notices", lambda model: notice)
    _, output, errors = run("ask", media_files()["picture"], "What?")
    assert output == "a[2J\n\tb\n"
    assert "note: clip\\x1b[31m.mp4 is silent" in errors
