from __future__ import annotations

import json
from pathlib import Path

import pytest

from video_llama.datasets.audio_caption import read_audio_caption
from video_llama.datasets.cc_sbu_align import read_cc_sbu_align
from video_llama.datasets.llava_instruct import read_llava_instruct
from video_llama.datasets.webvid_instruct import read_webvid_instruct
from video_llama.types import ConfigError

READERS = {
    "filter_cap.json": lambda path: read_cc_sbu_align(path.parent),
    "llava.json": lambda path: read_llava_instruct(path, path.parent),
    "talk.json": lambda path: read_webvid_instruct(path, path.parent),
    "sounds.json": lambda path: read_audio_caption(path, path.parent),
}


@pytest.mark.parametrize("name", READERS)
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", ":1: not JSON: Expecting value"),
        (b"[1,\n2,", r":2: not JSON"),
        (b"\xff\xfe[\x00", "not JSON in UTF-8"),
        (b"[" * 100_000, "nested too deep|not JSON"),
        (b"[" + b"9" * 5000 + b"]", "not JSON in UTF-8|expected"),
        (b"null", "expected"),
        (b"[]", "expected"),
        (b"[7]", "expected"),
        (b"{}", "expected"),
        (b'{"annotations": {}}', "expected"),
        (b'{"annotations": []}', "expected"),
        (b'[{"id": 1}]', "expected|has no"),
    ],
)
def test_a_file_with_another_structure_is_an_error(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        READERS[name](path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", READERS)
def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"(?i)no such file"):
        READERS[name](tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(ConfigError, match="a folder given"):
        READERS[name](tmp_path / name)


def sentence(role: str, value: object) -> dict[str, object]:
    return {"from": role, "value": value}


ASKED, TOLD = sentence("human", "<image> What?"), sentence("gpt", "This.")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"conversations": [ASKED, TOLD]}, "entry 1 has no 'image'; found 'conversations'"),
        ({"image": 7, "conversations": [ASKED, TOLD]}, "entry 1: image is 7, text expected"),
        ({"image": "a"}, "entry 1: conversations are not questions"),
        ({"image": "a", "conversations": []}, "conversations are not questions"),
        ({"image": "a", "conversations": [ASKED]}, "conversations are not questions"),
        ({"image": "a", "conversations": [TOLD, ASKED]}, "sentence 0 is not from 'human'"),
        ({"image": "a", "conversations": [ASKED, ASKED]}, "sentence 1 is not from 'gpt'"),
        ({"image": "a", "conversations": [ASKED, "no"]}, "sentence 1 is not from 'gpt'"),
        ({"image": "a", "conversations": [ASKED, sentence("gpt", None)]}, "value is null"),
        ({"image": "a", "conversations": [ASKED, sentence("gpt", " ")]}, "sentence 1: value is"),
        ({"image": "a", "conversations": [sentence("human", "no"), TOLD]}, "0 times <image>"),
        ({"image": "a", "conversations": [ASKED, TOLD] * 2}, "2 times <image>"),
    ],
)
def test_llava_names_the_entry_that_is_wrong(
    tmp_path: Path, entry: dict[str, object], message: str
) -> None:
    good = {"image": "a.jpg", "conversations": [ASKED, TOLD]}
    path = tmp_path / "llava.json"
    path.write_text(json.dumps([good, entry]))
    with pytest.raises(ConfigError, match=message):
        read_llava_instruct(path, tmp_path)


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
        read_webvid_instruct(path, tmp_path)


def test_a_picture_that_is_annotated_twice_is_an_error(tmp_path: Path) -> None:
    twice = [{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "b"}]
    (tmp_path / "filter_cap.json").write_text(json.dumps({"annotations": twice}))
    with pytest.raises(ConfigError, match="image_id '1' stands in entry 0 and again in entry 1"):
        read_cc_sbu_align(tmp_path)


def test_a_caption_that_is_missing_is_an_error(tmp_path: Path) -> None:
    for caption in ("", None, float("nan"), 3):
        entries = [{"image_id": "1", "caption": caption}]
        (tmp_path / "filter_cap.json").write_text(json.dumps({"annotations": entries}))
        with pytest.raises(ConfigError, match=r"entry 0: caption is .*, text expected"):
            read_cc_sbu_align(tmp_path)


def test_lone_surrogates_and_zero_bytes_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "sounds.json"
    path.write_text('[{"audio": "a\\u0000.wav", "caption": "x \\ud800 y"}]')
    record = read_audio_caption(path, tmp_path)[0]
    assert record.caption == "x \ufffd y"
    assert record.item_id == "a\0.wav"
