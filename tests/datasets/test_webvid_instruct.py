"""Conversations about clips."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data_sets import (
    conversation_of,
    info_of,
    load_item,
    read_annotation,
    write_json,
)
from tests.media import write_video
from video_llama.datasets.base import BuildInfo
from video_llama.types import ConfigError


def test_clips_are_introduced_with_the_times_of_their_frames(data: Path) -> None:
    info = info_of("webvid_instruct", data)
    text = conversation_of(load_item("webvid_instruct", info, 2)).replace(
        " ", ""
    )  # 8 frames at 8 per second
    times = "0.0,0.1,0.2,0.4,0.5,0.6,0.8,0.9"
    assert f"</Video>Thevideocontains8framessampledat{times}seconds.Whatisit?" in text
    assert "Itisp/2.mp4." in text


def test_chinese_clips_are_not(data: Path) -> None:
    item = load_item("webvid_instruct_zh", info_of("webvid_instruct_zh", data), 2)
    text = conversation_of(item).replace(" ", "")
    assert "</Video>Whatisit?" in text


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"QA": [{"q": "a", "a": "b"}]}, "entry 1 has no 'video'"),
        ({"video": "a", "QA": "b"}, "QA is no list"),
        ({"video": "a"}, "QA is no list"),
        ({"video": "a", "QA": [["q", "a"]]}, "QA is no list"),
        ({"video": "a", "QA": []}, "QA is empty"),
        ({"video": "a", "QA": [{"q": "b"}]}, "entry 1, QA 0 has no 'a'; found 'q'"),
        ({"video": "a", "QA": [{"q": "b", "a": float("nan")}]}, "QA 0: a is NaN, text expected"),
        ({"video": "a", "QA": [{"q": ["b"], "a": "c"}]}, "QA 0: q is a list, text expected"),
    ],
)
def test_webvid_instruct_names_the_entry_that_is_wrong(
    tmp_path: Path, entry: dict[str, object], message: str
) -> None:
    path = tmp_path / "talk.json"
    path.write_text(json.dumps([{"video": "v", "QA": [{"q": "a", "a": "b"}]}, entry]))
    with pytest.raises(ConfigError, match=message):
        read_annotation("webvid_instruct", path)


def test_an_instruction_leads_its_question(tmp_path: Path) -> None:
    pairs = [
        {"i": "Answer with a letter.", "q": "Which? (A) yes (B) no", "a": "A"},
        {"i": "Describe the clip.", "q": "", "a": "A dog runs."},
        {"i": "", "q": "How many?", "a": "Two."},
        {"i": None, "q": "Where?", "a": "There."},
        {"q": "When?", "a": "Then."},
    ]
    path = write_json(tmp_path / "talk.json", [{"video": "a.mp4", "QA": pairs}])
    assert [question for question, _ in read_annotation("webvid_instruct", path)[0].turns] == [
        *("Answer with a letter. Which? (A) yes (B) no", "Describe the clip."),
        *("How many?", "Where?", "When?"),
    ]
    write_video(tmp_path / "a.mp4", width=32, height=32)
    info = BuildInfo(anno_dir=str(path), videos_dir=str(tmp_path))
    text = conversation_of(load_item("webvid_instruct", info)).replace(" ", "")
    assert "seconds.Answerwithaletter.Which?" in text


@pytest.mark.parametrize("instruction", [3, True, ["a"], {}])
def test_an_instruction_that_is_no_text_is_an_error(tmp_path: Path, instruction: object) -> None:
    pair = {"i": instruction, "q": "a", "a": "b"}
    path = write_json(tmp_path / "talk.json", [{"video": "a.mp4", "QA": [pair]}])
    with pytest.raises(ConfigError, match=r"entry 0, QA 0: i is .*, text expected"):
        read_annotation("webvid_instruct", path)
