"""Conversations about pictures."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from tests.data_sets import (
    conversation_of,
    info_of,
    llava_entry,
    load_item,
    read_annotation,
    write_json,
)
from tests.media import write_picture
from video_llama.datasets.base import BuildInfo
from video_llama.types import ConfigError


def sentence(role: str, value: object) -> dict[str, object]:
    return {"from": role, "value": value}


ASKED, TOLD = sentence("human", "<image> What?"), sentence("gpt", "This.")


def test_llava_puts_the_picture_where_the_mark_is(data: Path) -> None:
    item = load_item("llava_instruct", info_of("llava_instruct", data), 1)
    picture = "<Image>" + "<ImageHere>" * 4 + "</Image>"
    text = conversation_of(item).replace(" ", "")
    assert picture.replace(" ", "") in text
    assert text.count("<ImageHere>") == 4
    assert "<image>" not in text
    assert text.index("</Image>") < text.index("Whatisit?") < text.index("Andthen?")


def test_llava_replaces_a_mark_in_a_later_turn(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg")
    talk = llava_entry("a.jpg", turns=2)
    for number, question in ((0, "Hello."), (2, "What is <image> then?")):
        talk["conversations"][number]["value"] = question
    path = write_json(tmp_path / "llava.json", [talk])
    info = BuildInfo(anno_dir=str(path), videos_dir=str(tmp_path))
    text = conversation_of(load_item("llava_instruct", info)).replace(" ", "")
    assert text.index("Hello.") < text.index("<ImageHere>") < text.index("then?")


def test_llava_falls_back_to_the_plain_file_name(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg", 30, 30)
    path = write_json(tmp_path / "llava.json", [llava_entry("a.jpg")])
    info = BuildInfo(anno_dir=str(path), videos_dir=str(tmp_path))
    plain = load_item("llava_instruct", info).values
    write_picture(tmp_path / "COCO_train2014_a.jpg", 30, 30, mode="L")
    coco = load_item("llava_instruct", info).values
    assert not torch.equal(plain, coco)


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
        read_annotation("llava_instruct", path)
