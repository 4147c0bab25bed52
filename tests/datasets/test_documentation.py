"""The examples of docs/data.md are read as the page says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.reference import ROOT
from video_llama.datasets.build_info import BuildInfo
from video_llama.datasets.settings import DATASETS

FILES = {
    "webvid": "a.csv",
    "cc_sbu_align": "filter_cap.json",
    "llava_instruct": "a.json",
    "webvid_instruct": "a.json",
    "webvid_instruct_zh": "a.json",
    "audio_caption": "a.csv",
}


def example(name: str) -> str:
    """The first block under the headline that names a data set."""
    page = (ROOT / "docs/data.md").read_text("utf-8")
    section = re.split(rf"\n### [^\n]*`{name}`[^\n]*\n", page)[1]
    return re.split(r"```\w*\n", section)[1]


@pytest.mark.parametrize("name", FILES)
def test_the_example_of_a_format_is_read(tmp_path: Path, name: str) -> None:
    path = tmp_path / FILES[name]
    path.write_text(example(name), "utf-8")
    info = BuildInfo(anno_dir=str(path), videos_dir=str(tmp_path), storage=str(tmp_path))
    records = DATASETS.get(name)(build_info=info).read(info)
    assert len(records) >= 1
    assert records[0].caption or records[0].turns


def test_every_data_set_is_described() -> None:
    page = (ROOT / "docs/data.md").read_text("utf-8")
    assert [name for name in DATASETS if not re.search(rf"\n### [^\n]*`{name}`", page)] == []
