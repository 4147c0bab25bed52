"""The program: what it prints, how it fails, and what it loads."""

from __future__ import annotations

import io
import json
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.reference import ROOT
from tests.tiny_chat import Run, media_files, tiny_model
from video_llama.apps.cli.main import main
from video_llama.common.io import one_line


def program(*argv: object, python: Sequence[str] = ()) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python, "-m", "video_llama.apps.cli.main", *map(str, argv)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    "argv",
    [
        [],
        ["aks"],
        ["ask"],
        ["ask", "a.mp4", "What?", "--bogus"],
        ["ask", "a.mp4", "What?", "--temperature", "hot"],
        ["ask", "a.mp4", "What?", "--options"],
        ["ask", "a.mp4", "What?", "--options", "no_equals_sign"],
        ["doctor"],
        ["doctor", "a.yaml", "b.yaml"],
        ["convert", "a.pth"],
    ],
)
def test_wrong_usage_is_status_2(run: Run, argv: list[str]) -> None:
    status, output, errors = run(*argv)
    assert status == 2
    assert output == ""
    assert errors.startswith("usage: ")


def test_an_error_of_the_system_names_the_file(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    source = tmp_path / "in.safetensors"
    save_file({"llama_proj.bias": torch.zeros(2)}, source)
    status, _, errors = run("convert", source, tmp_path / "file" / "out.pth")
    assert status == 1
    assert errors.startswith("video-llama: error: ")
    assert str(tmp_path / "file") in errors
    assert len(errors.splitlines()) == 1


def test_errors_are_folded_to_one_line() -> None:
    assert one_line(ValueError("a\nb")) == "a b"
    assert one_line(PermissionError(13, "Permission denied", "x.pth")) == "x.pth: permission denied"
    assert one_line(OSError("no file name")) == "no file name"


@pytest.mark.parametrize("command", ["", "ask", "chat", "doctor", "convert"])
def test_help_loads_nothing_heavy(command: str) -> None:
    argv = [command, "--help"] if command else ["--help"]
    code = f"""
import sys
from video_llama.apps.cli.main import main
try:
    main({argv!r})
except SystemExit as leaving:
    assert not leaving.code
heavy = {{"torch", "transformers", "decord", "av", "timm", "rich"}} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("usage: video-llama")


def test_the_help_does_not_call_the_tiny_preset_random(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["ask", "--help"])
    told = " ".join(capsys.readouterr().out.split())
    assert "tiny.yaml, which knows a small synthetic world only" in told


def test_the_program_answers_in_a_process_of_its_own(tmp_path: Path) -> None:
    picture = tmp_path / "caf\udce9.png"
    try:
        picture.write_bytes(media_files()["picture"].read_bytes())
    except (OSError, UnicodeError):  # a file system that takes UTF-8 names only
        picture = media_files()["picture"]
    done = program("ask", media_files()["talkie"], picture, "What do you hear?", "--json")
    assert done.returncode == 0, done.stderr
    details = json.loads(done.stdout)
    assert [item["kind"] for item in details["media"]] == ["video", "image"]
    assert details["media"][0]["sound_used"]
    assert details["media"][1]["path"] == str(picture)
    assert not any("random weights" in notice for notice in details["notices"])
    assert done.stderr == ""


def test_an_error_of_the_program_shows_no_traceback_and_loads_no_torch() -> None:
    done = program("ask", "missing.mp4", "What?", python=["-X", "importtime"])
    assert (done.returncode, done.stdout) == (1, "")
    message, loaded = done.stderr.splitlines()[-1], done.stderr
    assert message == "video-llama: error: missing.mp4: there is no such file"
    assert "video_llama.common.io" in loaded
    assert not re.search(r"\| *torch$", loaded, re.MULTILINE)


def test_a_reader_that_leaves_is_no_error() -> None:
    command = [sys.executable, "-m", "video_llama.apps.cli.main", "--help"]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=100) == 0


def test_a_closed_output_is_no_error(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    assert run("ask", media_files()["picture"], "What?", "--max-new-tokens", 3)[0] == 0


def test_any_text_passes_through_any_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = b"/add caf\xe9.png\nqu\xff?\n" + "\U0001f600 ?\n/\u00e9\n".encode()
    streams = {name: io.BytesIO() for name in ("stdout", "stderr")}
    for name, stream in streams.items():
        errors = "backslashreplace" if name == "stderr" else "strict"  # as Python opens them
        text = io.TextIOWrapper(stream, encoding="ascii", errors=errors, write_through=True)
        monkeypatch.setattr(sys, name, text)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(lines), encoding="utf-8"))
    monkeypatch.setattr("video_llama.config.build.build_model", lambda cfg, **_: tiny_model())
    assert main(["chat", "--max-new-tokens", "30"]) == 0
    told = streams["stderr"].getvalue()
    assert b"caf\\udce9.png: there is no such file" in told
    assert b"there is no command /\\xe9" in told
    assert streams["stdout"].getvalue().count(b"\n") == 2
