"""Annotations that others wrote: names that lead elsewhere, and files that are no JSON lists."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.data_sets import entry, read_annotation, write_json, write_table
from tests.media import tone, write_audio, write_picture
from video_llama.datasets.base import BuildInfo
from video_llama.datasets.loading import media_loader, read_records
from video_llama.datasets.prepare.check import check
from video_llama.datasets.prepare.pack import pack
from video_llama.datasets.records import read_json
from video_llama.datasets.tables import read_tables
from video_llama.types import ConfigError, MediaError


def annotation(folder: Path, family: str, name: str) -> BuildInfo:
    """An annotation of one item of that name, beside a folder `media`."""
    media = folder / "media"
    (media / "image").mkdir(parents=True)
    talk = [{"from": "human", "value": "<image> a"}, {"from": "gpt", "value": "b"}]
    table, values = folder / "a.csv", folder / "a.json"
    if family == "webvid":
        write_table(table, [("videoid", "page_dir", "name"), (name, "", "a clip")])
        return BuildInfo(anno_dir=str(table), videos_dir=str(media))
    if family == "audio_caption":
        write_table(table, [("audio", "caption"), (name, "a sound")])
        return BuildInfo(anno_dir=str(table), videos_dir=str(media))
    if family == "cc_sbu_align":
        annotations = {"annotations": [{"image_id": name, "caption": "a"}]}
        write_json(media / "filter_cap.json", annotations)
        return BuildInfo(storage=str(media))
    if family == "llava_instruct":
        write_json(values, [{"image": name, "conversations": talk}])
    else:
        write_json(values, [{"video": name, "QA": [{"q": "a", "a": "b"}]}])
    return BuildInfo(anno_dir=str(values), videos_dir=str(media))


FAMILIES = ["webvid", "audio_caption", "cc_sbu_align", "llava_instruct", "webvid_instruct"]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("start", ["/", "../", "image/../../"])
def test_a_name_that_leads_out_of_its_folder_is_not_read(
    tmp_path: Path, family: str, start: str
) -> None:
    for suffix in ("", ".mp4", ".jpg"):
        write_audio(tmp_path / "secret.wav", tone(0.2)).rename(tmp_path / f"secret{suffix}")
    name = f"{tmp_path}/secret" if start == "/" else f"{start}secret"
    info = annotation(tmp_path, family, name)
    records = read_records(entry(family, info), info)
    with pytest.raises(MediaError, match=f"its name leads out of {tmp_path}/media"):
        records[0].media.open()
    report = pack(family, records, tmp_path / "out")
    assert [reason.split("/")[0] for _, reason in report.failed] == ["its name leads out of "]


def test_a_picture_in_a_folder_of_the_folder_is_read(tmp_path: Path) -> None:
    info = annotation(tmp_path, "llava_instruct", "./image/..a.jpg")
    write_picture(tmp_path / "media/image/..a.jpg", 20, 20)
    records = read_records(entry("llava_instruct", info), info)
    with records[0].media.open() as path:
        assert path.exists()


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("name", ["x" * 5000, "a\0b"])
def test_a_name_that_no_file_can_have_is_a_corrupt_item(
    tmp_path: Path, family: str, name: str
) -> None:
    info = annotation(tmp_path, family, name)
    settings = entry(family, info)
    records = read_records(settings, info)
    report = check(family, records, media_loader(settings, split="train"))
    assert [finding.problem for finding in report.findings] == ["corrupt"]
    assert "it cannot be opened" in report.findings[0].reason


FILES = {
    "cc_sbu_align": "filter_cap.json",
    "llava_instruct": "llava.json",
    "webvid_instruct": "talk.json",
    "audio_caption": "sounds.json",
}


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
        read_annotation(name, path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_and_a_folder_are_errors(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match=r"(?i)no such file"):
        read_annotation(name, tmp_path / FILES[name])
    (tmp_path / FILES[name]).mkdir()
    with pytest.raises(ConfigError, match="a folder given"):
        read_annotation(name, tmp_path / FILES[name])


def test_lone_surrogates_and_zero_bytes_do_no_harm(tmp_path: Path) -> None:
    path = tmp_path / "sounds.json"
    path.write_text('[{"audio": "a\\u0000.wav", "caption": "x \\ud800 y"}]')
    record = read_annotation("audio_caption", path)[0]
    assert record.caption == "x \ufffd y"
    assert record.item_id == "a\0.wav"


def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    for path in (tmp_path / "a.csv", Path("/dev/zero")):
        for read in (read_json, read_table):
            with pytest.raises(ConfigError, match=f"{path}: a pipe or a device given"):
                read(path)
    with pytest.raises(ConfigError, match=r"a\.csv: a pipe or a device given"):
        read_table(tmp_path)


def read_table(path: Path) -> None:
    read_tables(path, ["id"], key="id", caption="id")


@pytest.mark.parametrize(
    ("encoding", "text", "advice"),
    [
        ("gb18030", "一只狗在雪地里跑", "it looks like GBK: convert it with iconv -f GB18030"),
        ("cp1252", "un café à côté", "save it as UTF-8"),
        ("utf-16", "plain", "it is UTF-16"),
        ("utf-16", "一只狗", "it is UTF-16"),
    ],
)
@pytest.mark.parametrize("name", ["audio_caption", "webvid_instruct"])
def test_another_encoding_is_named_with_the_line(
    tmp_path: Path, name: str, encoding: str, text: str, advice: str
) -> None:
    entries = [{"audio": "a", "caption": "b"}, {"audio": "c", "caption": text}]
    path = tmp_path / FILES[name]
    path.write_bytes(json.dumps(entries, ensure_ascii=False, indent=1).encode(encoding))
    line = 1 if encoding == "utf-16" else 8
    with pytest.raises(ConfigError, match=rf"\.json:{line}: not JSON in UTF-8: .*{advice}"):
        read_annotation(name, path)


@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_a_byte_order_mark_does_not_matter(tmp_path: Path, mark: str) -> None:
    path = tmp_path / "sounds.json"
    path.write_text(mark + '[{"audio": "a", "caption": "狗"}]', "utf-8")
    assert read_annotation("audio_caption", path)[0].caption == "狗"


@pytest.mark.parametrize("value", [True, False, 3, 2.5, [], {}, ["a"]])
def test_a_caption_that_is_no_text_is_an_error(tmp_path: Path, value: object) -> None:
    for name, key in (("cc_sbu_align", "image_id"), ("audio_caption", "audio")):
        entries: Any = [{key: "a", "caption": "b"}, {key: "c", "caption": value}]
        entries = {"annotations": entries} if name == "cc_sbu_align" else entries
        path = write_json(tmp_path / FILES[name], entries)
        with pytest.raises(ConfigError, match=r"entry 1: caption is .*, text expected"):
            read_annotation(name, path)


def test_missing_captions_are_counted(tmp_path: Path) -> None:
    words = ["None", None, "N/A", float("nan"), "", " null", "None"]
    captions = ["none of them", "NA", *words, "Nano"]
    sounds = [{"audio": str(n), "caption": caption} for n, caption in enumerate(captions)]
    expected = (
        r"sounds\.json: entry 2: caption is 'None', text expected \(7 such entries: 2, 3, 4, 5, 6, "
        r"\.\.\.; 'None' 2 x, null 1 x, 'N/A' 1 x, NaN 1 x, '' 1 x, ' null' 1 x; fill them"
    )
    with pytest.raises(ConfigError, match=expected):
        read_annotation("audio_caption", write_json(tmp_path / "sounds.json", sounds))
