"""Names in annotations, which others wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data_sets import entry, write_json, write_table
from tests.media import tone, write_audio, write_picture
from video_llama.datasets.base import BuildInfo
from video_llama.datasets.loading import media_loader, read_records
from video_llama.datasets.prepare.check import check
from video_llama.datasets.prepare.pack import pack
from video_llama.types import MediaError


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
