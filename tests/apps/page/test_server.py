"""The page as a server and as an API: what it gives, and what it keeps to itself."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.apps.page.served import GRACE, NO_EARS, fill_queue, served
from tests.reference import ROOT
from tests.tiny_chat import media_files

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
pytestmark = pytest.mark.slow

from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402

from video_llama.apps.page.server import Page  # noqa: E402

SHORT = {"temperature": 0.0, "max_new_tokens": 6}
LONG = {"temperature": 1.0, "seed": 1, "min_new_tokens": 1500, "max_new_tokens": 1500}


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with served() as page:
        yield page


@pytest.fixture
def client(page: Page) -> Iterator[Client]:
    client = Client(page.url, verbose=False)
    yield client
    client.close()


def upload(page: Page, path: Path) -> str:
    with path.open("rb") as file:
        response = httpx.post(f"{page.url}gradio_api/upload", files={"files": (path.name, file)})
    (stored,) = response.raise_for_status().json()
    return stored


def call(page: Page, endpoint: str, *data: Any, session: str = "s") -> httpx.Response:
    body = {"data": list(data), "session_hash": session}
    return httpx.post(f"{page.url}gradio_api/call/{endpoint}", json=body)


def result(page: Page, endpoint: str, *data: Any, session: str = "s") -> tuple[str, Any]:
    """The last event of a call, and what came with it."""
    event = call(page, endpoint, *data, session=session).raise_for_status().json()["event_id"]
    url = f"{page.url}gradio_api/call/{endpoint}/{event}"
    lines = httpx.get(url, timeout=100).text.strip().splitlines()
    return lines[-2].removeprefix("event: "), json.loads(lines[-1].removeprefix("data: "))


def test_a_conversation_through_the_client(client: Client) -> None:
    clip = client.predict(handle_file(media_files()["talkie"]), True, api_name="/add_media")
    assert (clip["kind"], clip["has_sound"], clip["sound_used"]) == ("video", True, True)
    assert len(clip["frame_seconds"]) == len(clip["sound_seconds"]) == 8
    answer = client.predict("What?", **SHORT, api_name="/ask")
    silent = client.predict(handle_file(media_files()["silent"]), True, api_name="/add_media")
    assert "has no sound track" in silent["notice"]
    client.predict("And?", **SHORT, api_name="/ask")
    history = client.predict(api_name="/history")
    assert [turn["question"] for turn in history] == ["What?", "And?"]
    assert history[0]["answer"] == answer.strip()
    report = client.predict(api_name="/report")
    assert 1 <= report["num_tokens"] <= 6
    assert report["num_reused_tokens"] > 0
    assert set(report["seconds"]) >= {"first_token", "generate"}
    assert [item["name"] for item in client.predict(api_name="/media")] == [
        "talkie.mp4",
        "silent.mp4",
    ]
    switched = client.predict(False, api_name="/set_audio")
    assert [item["sound_used"] for item in switched] == [False, False]
    again = client.predict(temperature=1.0, max_new_tokens=6, seed=3, api_name="/regenerate")
    assert client.predict(api_name="/history")[1]["answer"] == again.strip()
    assert client.predict(api_name="/undo") == "And?"
    assert len(client.predict(api_name="/history")) == 1
    client.predict(api_name="/restart")
    assert client.predict(api_name="/media") == client.predict(api_name="/history") == []


def test_answers_are_streamed_and_stopped(client: Client) -> None:
    job = client.submit("Tell me all.", **LONG, api_name="/ask")
    pieces = iter(job)
    first, second = next(pieces), next(pieces)
    assert second.startswith(first)
    assert client.predict(api_name="/stop") == "stopped"
    job.result(timeout=100)
    report = client.predict(api_name="/report")
    assert report["stopped"]
    assert report["num_tokens"] < LONG["max_new_tokens"]


@pytest.mark.parametrize(
    ("endpoint", "arguments", "said"),
    [
        ("/ask", ["  "], "the question is empty"),
        ("/ask", ["What?", 1e9], "temperature: 1000000000.0 given"),
        ("/regenerate", [], "nothing has been asked yet"),
        ("/undo", [], "nothing has been asked yet"),
    ],
)
def test_errors_reach_the_client(
    client: Client, endpoint: str, arguments: list[Any], said: str
) -> None:
    with pytest.raises(AppError, match=said):
        client.predict(*arguments, api_name=endpoint)


def test_a_bad_file_reaches_the_client_without_its_place(client: Client, tmp_path: Path) -> None:
    (tmp_path / "notes.mp4").write_text("no clip")
    with pytest.raises(AppError) as refused:
        client.predict(handle_file(tmp_path / "notes.mp4"), True, api_name="/add_media")
    assert str(refused.value).startswith("notes.mp4: it is not a media file")


def test_a_large_file_is_not_taken(page: Page, tmp_path: Path) -> None:
    (tmp_path / "large.mp4").write_bytes(bytes(2_500_000))
    with (tmp_path / "large.mp4").open("rb") as file:
        response = httpx.post(f"{page.url}gradio_api/upload", files={"files": file})
    assert response.status_code == 413


def test_two_clients_do_not_mix(page: Page) -> None:
    clients = [Client(page.url, verbose=False) for _ in range(2)]
    names = ["wav", "picture"]
    jobs = []
    for client, name in zip(clients, names, strict=True):
        client.predict(handle_file(media_files()[name]), True, api_name="/add_media")
        jobs.append(client.submit(f"What of {name}?", **SHORT, api_name="/ask"))
    for job in jobs:
        job.result(timeout=100)
    for client, name in zip(clients, names, strict=True):
        (turn,) = client.predict(api_name="/history")
        assert turn["question"] == f"What of {name}?"
        assert [item["kind"] for item in client.predict(api_name="/media")] == [
            {"wav": "audio", "picture": "image"}[name]
        ]
        client.close()


def test_a_client_that_leaves_is_freed(page: Page) -> None:
    client = Client(page.url, verbose=False)
    client.predict(handle_file(media_files()["picture"]), True, api_name="/add_media")
    before = len(page.conversations)
    client.close()
    deadline = time.monotonic() + 60
    while len(page.conversations) >= before and time.monotonic() < deadline:
        time.sleep(GRACE / 4)
        page.conversations.free_stale()
    assert len(page.conversations) < before


HOSTILE_PATHS = [
    "/etc/passwd",
    "/proc/self/environ",
    "{folder}/../../etc/passwd",
    "{folder}/examples/../../../../../../../../etc/passwd",
    "http://127.0.0.1:9/a.png",
    "https://example.com/a.png",
    "file:///etc/passwd",
    "{root}/README.md",
    "../../../etc/passwd",
]


@pytest.mark.parametrize("path", HOSTILE_PATHS)
def test_the_file_routes_serve_uploads_only(page: Page, path: str) -> None:
    path = path.format(folder=page.folder, root=ROOT)
    for route in ("gradio_api/file=", "file=", "gradio_api/file/", "gradio_api/proxy="):
        for spelt in (path, path.replace("/", "%2F"), path.replace("..", "%2e%2e")):
            response = httpx.get(f"{page.url}{route}{spelt}")
            assert response.status_code in (403, 404), (route, spelt)
            assert "root:" not in response.text


def every_event(page: Page) -> list[tuple[int, int]]:
    """(index, number of inputs) of everything that the page's server can be asked to run."""
    config = httpx.get(f"{page.url}config").json()
    return [(dep["id"], len(dep["inputs"])) for dep in config["dependencies"]]


@pytest.mark.parametrize("path", HOSTILE_PATHS[:4])
def test_no_event_reads_a_file_that_was_not_uploaded(page: Page, path: str) -> None:
    path = path.format(folder=page.folder)
    file = {"path": path, "meta": {"_type": "gradio.FileData"}, "orig_name": "a.png"}
    shapes = [file, {"video": file}, {"text": "What?", "files": [file]}, [file]]
    for index, num_inputs in every_event(page):
        for shape in shapes:
            body = {"data": [shape] * num_inputs, "fn_index": index, "session_hash": "evil"}
            if num_inputs:
                joined = httpx.post(f"{page.url}gradio_api/queue/join", json=body)
                assert joined.status_code == 403
    assert call(page, "add_media", file, True).status_code == 403
    kind, told = result(page, "add_media", path, True)  # a plain text in place of a file
    assert kind == "error"
    assert "was not uploaded" in str(told)


def test_wrong_types_are_errors_and_not_crashes(page: Page) -> None:
    for data in ([None], [7], [{"a": 1}], [["x"]], ["What?", "hot"], ["What?", None], []):
        assert result(page, "ask", *data)[0] == "error"
    for data in ([None, True], [7, True], [{}, True], [[], True]):
        assert result(page, "add_media", *data)[0] == "error"
    for flag in ("false", 0, None, {}):
        kind, told = result(page, "set_audio", flag)
        assert kind == "error"
        assert "true or false expected" in str(told)
    assert result(page, "ask", "What?", 0.0, 1, 0.9, 1.0, 1.0, 1, 4, None)[0] == "complete"


def test_an_upload_cannot_choose_its_place(page: Page) -> None:
    for name in ("../../evil.png", "/tmp/evil.png", "..", "a/../../b.png"):
        files = {"files": (name, b"x")}
        response = httpx.post(f"{page.url}gradio_api/upload", files=files)
        if response.status_code == 200:
            (stored,) = response.json()
            assert Path(stored).resolve().is_relative_to(page.folder)


def test_the_folder_is_for_its_user_only_and_goes_with_the_page() -> None:
    with served() as page:
        assert page.folder.stat().st_mode & 0o077 == 0
        upload(page, media_files()["picture"])
    assert not page.folder.exists()


def test_who_may_not_come_in_gets_nothing() -> None:
    with served(auth=("me", "secret")) as page:
        for path in ("config", "gradio_api/info", "gradio_api/queue/data?session_hash=x"):
            assert httpx.get(f"{page.url}{path}").status_code == 401
        assert call(page, "history").status_code == 401
        wrong = httpx.post(f"{page.url}login", data={"username": "me", "password": "x"})
        assert wrong.status_code == 400
        client = Client(page.url, auth=("me", "secret"), verbose=False)
        assert client.predict(api_name="/history") == []
        client.close()


def test_who_comes_when_the_queue_is_full_is_told_so_and_may_come_again() -> None:
    with served(concurrency=1, max_queue=1) as page:
        visitors = fill_queue(page.url)
        refused = call(page, "history")
        assert refused.status_code == 503
        assert "Too many people are waiting" in refused.json()["detail"]
        deadline = time.monotonic() + 100
        while call(page, "history").status_code != 200:
            assert time.monotonic() < deadline
            for visitor in visitors:
                page.conversations.of(visitor).session.stop()


def test_without_an_audio_branch_there_is_nothing_about_sound() -> None:
    with served(*NO_EARS) as page:
        config = httpx.get(f"{page.url}config").json()
        ids = {part["props"].get("elem_id"): part["props"] for part in config["components"]}
        assert "sound" not in ids
        assert ids["audio"]["visible"] is False
        labels = [part["props"].get("value") for part in config["components"]]
        assert "A clip with sound" in labels
        assert "A sound" not in labels
        client = Client(page.url, verbose=False)
        clip = client.predict(handle_file(media_files()["talkie"]), True, api_name="/add_media")
        assert not clip["sound_used"]
        with pytest.raises(AppError, match="no audio branch"):
            client.predict(handle_file(media_files()["wav"]), True, api_name="/add_media")
        client.close()


def test_no_button_hands_a_file_to_another_server(page: Page) -> None:
    config = httpx.get(f"{page.url}config").json()
    slots = [p["props"] for p in config["components"] if p["type"] in ("video", "image", "audio")]
    assert len(slots) == 3
    for slot in slots:
        assert "share" not in (slot["buttons"] or ["share"])


def test_the_examples_are_real_files(page: Page) -> None:
    from video_llama.apps.page.examples import EXAMPLES
    from video_llama.processors.media import probe

    kinds = {"video": "video", "picture": "image", "sound": "audio"}
    for example in EXAMPLES:
        info = probe(page.folder / "examples" / example.file)
        assert info.kind == kinds[example.slot]
        assert info.has_audio is bool(example.scene.sounds)


WATCHED = """
import sys
def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.bind"):
        address = arguments[1] if event != "socket.getaddrinfo" else arguments[0]
        print("NET", event, address, file=sys.stderr, flush=True)
sys.addaudithook(watch)
import runpy
sys.argv = ["demo_audiovideo.py", "--port", sys.argv[1]]
runpy.run_path("demo_audiovideo.py", run_name="__main__")
"""


def test_the_process_speaks_to_this_machine_only(tmp_path: Path) -> None:
    port = _free_port()
    env = {name: value for name, value in os.environ.items() if not name.startswith("GRADIO")}
    env = {name: value for name, value in env.items() if not name.startswith("HF_")}
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-c", WATCHED, str(port)]
        process = subprocess.Popen(command, cwd=ROOT, env=env, stderr=log, stdout=log)
    try:
        url = f"http://127.0.0.1:{port}/"
        _wait_for(url, process, tmp_path / "log")
        client = Client(url, verbose=False)
        client.predict(handle_file(media_files()["talkie"]), True, api_name="/add_media")
        client.predict("What?", **SHORT, api_name="/ask")
        client.close()
    finally:
        process.terminate()
        process.wait(60)
    events = [line for line in (tmp_path / "log").read_text().splitlines() if "NET " in line]
    assert any("socket.bind" in event for event in events)
    strangers = [e for e in events if "127.0.0.1" not in e and "localhost" not in e]
    assert [e for e in strangers if "socket.bind" not in e and "/dev/" not in e] == []


def _free_port() -> int:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 110
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(url).status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.2)
    pytest.fail(log.read_text())
