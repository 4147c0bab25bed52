"""The command `demo`: what its options become, and what it says before the model is loaded."""

from __future__ import annotations

import socket
import subprocess
import sys

import pytest

from tests.reference import ROOT
from tests.tiny_chat import Run
from video_llama.apps.cli.ask import config_of
from video_llama.apps.cli.demo import _overrides, _server_options
from video_llama.apps.cli.main import parse
from video_llama.apps.page.options import ServerOptions


def test_nobody_else_is_let_in_by_default() -> None:
    options = _server_options(parse(["demo"]))
    assert options == ServerOptions()
    assert (options.server_name, options.share, options.auth) == ("127.0.0.1", False, None)


def test_every_option_arrives() -> None:
    words = "--share --server-name 0.0.0.0 --port 7777 --auth me:pa:ss --max-file-mb 5 "
    words += "--allow-host a.example --allow-host 10.0.0.7 "
    words += "--max-upload-gb 3 --max-minutes 2 --max-queue 3 --concurrency 2"
    assert _server_options(parse(["demo", *words.split()])) == ServerOptions(
        server_name="0.0.0.0",
        allow_host=("a.example", "10.0.0.7"),
        port=7777,
        share=True,
        auth=("me", "pa:ss"),
        max_file_mb=5,
        max_upload_gb=3,
        max_minutes=2,
        max_queue=3,
        concurrency=2,
    )


def test_the_conversation_format_is_the_users_unless_overridden() -> None:
    for more, expected in ([], "vicuna"), (["--options", "model.template=llama_v2"], "llama_v2"):
        args = parse(["demo", "--model_type", "vicuna", *more])
        assert config_of(args, *_overrides(args)).model.template == expected


def test_a_gpu_that_is_not_there_means_the_cpu(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert _overrides(parse(["demo", "--gpu-id", "0"])) == ["run.device=auto"]
    assert "runs on the CPU" in capsys.readouterr().err
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert _overrides(parse(["demo", "--gpu-id", "1"])) == ["run.device=cuda:1"]


def test_a_port_that_is_taken_is_said_before_the_model_is_loaded(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("video_llama.apps.cli.demo._serve", _serve_without_model)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        status, _, errors = run("demo", "--port", port)
    assert status == 1
    assert f"127.0.0.1:{port} cannot be used" in errors
    assert "choose another --port" in errors


def _serve_without_model(cfg: object, options: ServerOptions) -> object:
    from video_llama.apps.page.server import prepare

    prepare(options)
    return pytest.fail("the port was not checked")


@pytest.mark.parametrize(
    "program", [["demo_audiovideo.py"], ["-m", "video_llama.apps.cli.main", "demo"]]
)
def test_help_comes_without_torch_and_gradio(program: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", *program, "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0
    for flag in (
        "--share",
        "--server-name",
        "--allow-host",
        "--port",
        "--auth",
        "--max-file-mb",
        "--max-queue",
    ):
        assert flag in result.stdout
    imported = {line.split("|")[-1].strip() for line in result.stderr.splitlines()}
    assert not imported & {"torch", "gradio"}
