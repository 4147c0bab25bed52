"""Where the splits of a data set lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.data_sets import (
    entry,
    train_batches,
)
from video_llama.datasets.base import BuildInfo
from video_llama.types import ConfigError


def test_a_path_that_is_not_set_names_its_key(data: Path) -> None:
    settings = entry("webvid", BuildInfo(anno_dir=str(data / "webvid")))
    with pytest.raises(ConfigError, match=r"datasets.webvid: build_info.videos_dir is not set"):
        train_batches({"webvid": settings})
