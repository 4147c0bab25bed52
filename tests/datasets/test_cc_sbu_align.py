"""Pictures with captions."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.data_sets import (
    SIZE,
    entry,
    info_of,
    load_item,
    read_annotation,
    train_batches,
)
from video_llama.datasets.base import BuildInfo
from video_llama.types import ConfigError


def test_cc_sbu_align_keeps_its_captions_as_they_are(data: Path) -> None:
    item = load_item("cc_sbu_align", info_of("cc_sbu_align", data), 2)
    assert item.caption == "Picture 2!"
    assert item.item_id == "2.jpg"
    assert item.values.shape == (3, SIZE, SIZE)


def test_sets_of_pictures_on_the_web_come_in_tars_only(tmp_path: Path) -> None:
    for name in ("cc_sbu", "laion"):
        with pytest.raises(ConfigError, match=rf"datasets.{name}: build_info.storage: .* tars"):
            train_batches({name: entry(name, BuildInfo(storage=str(tmp_path)))})


def test_a_picture_that_is_annotated_twice_is_an_error(tmp_path: Path) -> None:
    twice = [{"image_id": 1, "caption": "a"}, {"image_id": "1", "caption": "b"}]
    (tmp_path / "filter_cap.json").write_text(json.dumps({"annotations": twice}))
    with pytest.raises(ConfigError, match="image_id '1' stands in entry 0 and again in entry 1"):
        read_annotation("cc_sbu_align", tmp_path / "filter_cap.json")
