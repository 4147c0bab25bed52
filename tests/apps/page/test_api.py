"""The page as an API, through `gradio_client` and plain HTTP."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.apps.page.served import result, served
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
    assert str(refused.value) == "notes.mp4: it is text, not a media file"


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
