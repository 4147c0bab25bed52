"""Lines of a JSONL file to requests: what is taken, what is refused, and how a line is marked."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from video_llama.chat.requests import BatchRequest, RequestDefaults, RequestMedia, read_requests
from video_llama.types import RequestError

MEDIA = Path("media")


def read(tmp_path: Path, *entries: Any, **defaults: Any) -> list[BatchRequest]:
    lines = [entry if isinstance(entry, str) else json.dumps(entry) for entry in entries]
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(lines))
    return read_requests(path, RequestDefaults(MEDIA, **defaults))


def test_media_are_listed_in_the_order_of_the_prompt(tmp_path: Path) -> None:
    entry = {
        "question": "What?",
        "video": ["a.mp4", "/b.mp4"],
        "audio": "c.wav",
        "media": ["d.png", {"path": "e.mp4", "kind": "audio", "num_clips": 2}],
        "num_frames": 3,
    }
    (request,) = read(tmp_path, entry, use_audio=False)
    assert request.error == ""
    assert request.media == (
        RequestMedia(MEDIA / "a.mp4", "video", False, 3),
        RequestMedia(Path("/b.mp4"), "video", False, 3),
        RequestMedia(MEDIA / "c.wav", "audio", False, 3),
        RequestMedia(MEDIA / "d.png", None, False, 3),
        RequestMedia(MEDIA / "e.mp4", "audio", False, 3, 2),
    )


@pytest.mark.parametrize(
    "key",
    ["id", "video", "image", "audio", "media", "use_audio", "num_frames", "num_clips", "options"],
)
def test_null_is_a_key_left_out(tmp_path: Path, key: str) -> None:
    entry = {"question": "What?", "image": "b.png"}
    plain, null = read(tmp_path, entry), read(tmp_path, entry | {key: None})
    if key == "image":
        plain = read(tmp_path, {"question": "What?"})
    assert null[0].error == ""
    assert (null[0].request_id, null[0].media, null[0].options) == (
        (plain[0].request_id, plain[0].media, plain[0].options)
    )


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("not json", "line 1 is not JSON"),
        ("[1]", "line 1 is no JSON object"),
        ({"question": None}, "question: None given, a text"),
        ({"question": 5}, "question: 5 given, a text"),
        ({"question": "?", "video": 5}, "path: 5 given"),
        ({"question": "?", "video": [None]}, "path: None given"),
        ({"question": "?", "media": "a.png"}, "media: 'a.png' given, a list"),
        ({"question": "?", "media": [{"path": "a", "kind": "film"}]}, "kind: 'film' given"),
        ({"question": "?", "image": "a", "use_audio": 1}, "use_audio: 1 given, true or false"),
        ({"question": "?", "image": "a", "num_frames": "8"}, "num_frames: '8' given, a whole"),
        ({"question": "?", "options": [1]}, "options: a JSON object expected"),
        ({"question": "?", "vidio": None}, "unknown key 'vidio'"),
        ({"question": "?", "id": [1]}, r"id: \[1\] given, a text or a whole number"),
        ("[" * 100_000, "line 1 is not JSON"),
    ],
)
def test_a_line_that_is_no_request_says_why(tmp_path: Path, entry: Any, message: str) -> None:
    import re

    (request,) = read(tmp_path, entry)
    assert re.search(message, request.error), request.error


def test_a_mark_tells_lines_apart(tmp_path: Path) -> None:
    entry = {"question": "What?", "image": "a.png"}
    same, again, other = read(tmp_path, entry, entry, entry | {"image": "b.png"})
    assert same.mark == again.mark != other.mark


def test_a_file_of_nothing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="it is empty"):
        read(tmp_path, "", "  ")
    with pytest.raises(RequestError, match="no such file"):
        read_requests(tmp_path / "none.jsonl", RequestDefaults(MEDIA))
