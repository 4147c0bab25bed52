"""The page as a server: what it gives, and what it keeps to itself."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.apps.page.served import GRACE, NO_AUDIO_BRANCH, call, fill_queue, result, served
from tests.reference import ROOT
from tests.tiny_chat import media_files

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")
pytestmark = pytest.mark.slow

from gradio_client import Client, handle_file  # noqa: E402
from gradio_client.exceptions import AppError  # noqa: E402

from video_llama.apps.page.server import Page  # noqa: E402
from video_llama.common.io import package_file  # noqa: E402

SHORT = {"temperature": 0.0, "max_new_tokens": 6}


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    with served() as page:
        yield page


def upload(page: Page, path: Path) -> str:
    with path.open("rb") as file:
        response = httpx.post(f"{page.url}gradio_api/upload", files={"files": (path.name, file)})
    (stored,) = response.raise_for_status().json()
    return stored


def test_a_large_file_is_not_taken(page: Page, tmp_path: Path) -> None:
    (tmp_path / "large.mp4").write_bytes(bytes(2_500_000))
    with (tmp_path / "large.mp4").open("rb") as file:
        response = httpx.post(f"{page.url}gradio_api/upload", files={"files": file})
    assert response.status_code == 413


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
    with served(*NO_AUDIO_BRANCH) as page:
        config = httpx.get(f"{page.url}config").json()
        ids = {part["props"].get("elem_id"): part["props"] for part in config["components"]}
        assert "sound" not in ids
        assert ids["audio"]["visible"] is False
        cards = [card["display_text"].partition(":")[0] for card in ids["chat"]["examples"]]
        assert "A clip with sound" in cards
        assert "A sound" not in cards
        client = Client(page.url, verbose=False)
        clip = client.predict(handle_file(media_files()["talkie"]), True, api_name="/add_media")
        assert not clip["sound_used"]
        with pytest.raises(AppError, match="no audio branch"):
            client.predict(handle_file(media_files()["wav"]), True, api_name="/add_media")
        client.close()


def test_the_page_says_which_model_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("video_llama.apps.banner.model_line", lambda model: "Tiny & <demo>")
    with served() as page:
        config = httpx.get(f"{page.url}config").json()
    (intro,) = (p["props"] for p in config["components"] if p["props"].get("elem_id") == "intro")
    assert "Tiny &amp; &lt;demo&gt;" in intro["value"]


def test_no_button_hands_a_file_to_another_server(page: Page) -> None:
    config = httpx.get(f"{page.url}config").json()
    (chat,) = (p["props"] for p in config["components"] if p["type"] == "chatbot")
    assert chat["buttons"] == ["copy", "copy_all"]
    # Players within the conversation have one of Gradio's own, which is hidden.
    style = package_file("apps/page/style.css").read_text("utf-8")
    assert '#chat button[aria-label="Share"] { display: none; }' in style
    shown = [p["type"] for p in config["components"] if p["type"] in ("video", "image", "audio")]
    assert shown == []


def test_other_names_than_those_of_the_page_are_refused(page: Page) -> None:
    for path in ("", "config", "gradio_api/queue/data?session_hash=x", "gradio_api/heartbeat/x"):
        refused = httpx.get(f"{page.url}{path}", headers={"Host": "attacker.example"})
        assert refused.status_code == 421
        assert "--allow-host" in refused.json()["detail"]
    body = {"data": [], "session_hash": "s"}
    for origin, status in (("http://attacker.example", 403), (page.url.rstrip("/"), 200)):
        headers = {"Origin": origin}
        url = f"{page.url}gradio_api/call/history"
        assert httpx.post(url, json=body, headers=headers).status_code == status


def test_the_public_address_and_allowed_names_are_names_of_the_page(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tunnel = "https://0123abcd.gradio.live"
    monkeypatch.setattr("gradio.networking.setup_tunnel", lambda **_: tunnel)
    with served(share=True, allow_host=("chat.example.org",)) as page:
        assert page.share_url == tunnel
        for host, status in (
            ("0123abcd.gradio.live", 200),
            ("chat.example.org:8443", 200),
            ("other.gradio.live", 421),
            ("gradio.live", 421),
        ):
            assert httpx.get(page.url, headers={"Host": host}).status_code == status, host


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
