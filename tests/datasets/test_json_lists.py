from __future__ import annotations

import json
from pathlib import Path

import pytest

from video_llama.datasets.base import DATASETS, SplitInfo
from video_llama.datasets.records import Records
from video_llama.types import ConfigError

FILES = {
    "cc_sbu_align": "filter_cap.json",
    "llava_instruct": "llava.json",
    "webvid_instruct": "talk.json",
    "audio_caption": "sounds.json",
}


def read(name: str, path: Path) -> Records:
    """The records of an annotation file, whose media lie beside it."""
    folder = str(path.parent)
    return DATASETS.get(name)().read(
        SplitInfo(anno_dir=str(path), videos_dir=folder, storage=folder)
    )


@pytest.mark.parametrize("name", FILES)
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
    path = tmp_path / FILES[name]
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read(name, path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"(?i)no such file"):
        read(name, tmp_path / FILES[name])
    (tmp_path / FILES[name]).mkdir()
    with pytest.raises(ConfigError, match="a folder given"):
        read(name, tmp_path / FILES[name])


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
        read("llava_instruct", path)


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
        read("webvid_instruct", path)


def test_a_picture_that_is_annotated_twice_is_an_error(tmp_path: Path) -> None:
    twice = [{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "b"}]
    (tmp_path / "filter_cap.json").write_text(json.dumps({"annotations": twice}))
    with pytest.raises(ConfigError, match="image_id '1' stands in entry 0 and again in entry 1"):
        read("cc_sbu_align", tmp_path / "filter_cap.json")


def test_a_caption_that_is_missing_is_an_error(tmp_path: Path) -> None:
    for caption in ("", None, float("nan"), 3):
        entries = [{"image_id": "1", "caption": caption}]
        (tmp_path / "filter_cap.json").write_text(json.dumps({"annotations": entries}))
        with pytest.raises(ConfigError, match=r"entry 0: caption is .*, text expected"):
            read("cc_sbu_align", tmp_path / "filter_cap.json")


def test_lone_surrogates_and_zero_bytes_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "sounds.json"
    path.write_text('[{"audio": "a\\u0000.wav", "caption": "x \\ud800 y"}]')
    record = read("audio_caption", path)[0]
    assert record.caption == "x \ufffd y"
    assert record.item_id == "a\0.wav"
