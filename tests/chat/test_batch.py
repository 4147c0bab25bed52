"""Requests answered together: each file is encoded once, each row answers as if alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.tiny_chat import answer, media_files, tiny_chat
from video_llama.chat.batch import BatchAnswerer
from video_llama.chat.requests import BatchRequest, RequestMedia

OPTIONS: dict[str, Any] = {"temperature": 0.0, "max_new_tokens": 6}


def request(number: int, question: str, *files: Path, **options: Any) -> BatchRequest:
    media = tuple(RequestMedia(path) for path in files)
    return BatchRequest(number, question, media, OPTIONS | options)


def test_files_are_encoded_together_and_once(monkeypatch: pytest.MonkeyPatch) -> None:
    files = [media_files()[name] for name in ("picture", "silent", "turned")]
    chat, shapes = tiny_chat(), []
    original = chat.model.encode_video

    def spy(video: Any) -> Any:
        shapes.append(tuple(video.shape[:3]))
        return original(video)

    monkeypatch.setattr(chat.model, "encode_video", spy)
    answerer = BatchAnswerer(chat)
    for turn in range(2):  # encoded files stay for the next questions
        results = answerer.answer(
            [request(n, f"{turn} {n}?", path) for n in range(3) for path in files]
        )
        assert all(result.answer is not None for result in results)
    assert sorted(shapes) == [(1, 3, 1), (2, 3, 8)]


def test_beams_and_samples_stand_beside_others() -> None:
    chat, files = tiny_chat(), media_files()
    several: list[dict[str, Any]] = [
        {"num_beams": 2},
        {},
        {"temperature": 1.5, "seed": 3},
        {"repetition_penalty": 5.0, "min_new_tokens": 4},
    ]
    requests = [request(n, "What?" * (n + 1), files["picture"], **o) for n, o in enumerate(several)]
    results = BatchAnswerer(chat, batch_size=3).answer(requests)
    for result, options in zip(results, several, strict=True):
        session = chat.start(image=files["picture"])
        assert result.answer == answer(session, result.request.question, **OPTIONS | options)
        assert result.num_tokens == session.report.num_tokens
        assert result.finished == session.report.finished


def test_what_is_wrong_with_one_is_said_there(tmp_path: Path) -> None:
    picture = media_files()["picture"]
    requests = [
        request(0, "Fine?", picture),
        request(1, "Missing?", tmp_path / "none.png"),
        request(2, "word " * 5000, picture),
        request(3, "Option?", picture, temperature=-1),
        BatchRequest(4, error="line 4 is not JSON"),
    ]
    results = BatchAnswerer(tiny_chat()).answer(requests)
    assert [result.answer is None for result in results] == [False, True, True, True, True]
    expected = ["", "no such file", "context holds", "temperature", "line 4"]
    assert all(text in result.error for text, result in zip(expected, results, strict=True))
