"""MiniGPT-4's pictures: tars with short captions for stage 1, a JSON list with long ones after."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from video_llama.datasets.base import DATASETS, DatasetSettings, SplitInfo
from video_llama.datasets.records import (
    Records,
    entries,
    read_json,
)
from video_llama.types import ConfigError

ANNOTATION = "filter_cap.json"
FORM = '{"annotations": [{"image_id": "...", "caption": "..."}, ...]}'


@DATASETS.register("cc_sbu")
@dataclass(kw_only=True)
class CcSbuSettings(DatasetSettings):
    """Pictures with short captions in webdataset tars (Conceptual Captions, SBU)."""


@DATASETS.register("laion")
@dataclass(kw_only=True)
class LaionSettings(DatasetSettings):
    """Pictures with short captions in webdataset tars (LAION)."""


@DATASETS.register("cc_sbu_align")
@dataclass(kw_only=True)
class CcSbuAlignSettings(DatasetSettings):
    """Pictures with long captions (MiniGPT-4's stage 2; LLaVA-CC3M in the same layout).

    The captions stay as they are, whatever the text processor: so the released weights saw them.
    """

    cleans_captions: ClassVar[bool] = False
    """See `DatasetSettings`."""

    def read(self, info: SplitInfo) -> Records:
        """Read `filter_cap.json`.

        `storage` holds that file and `image/{image_id}.jpg`.

        Raises:
            ConfigError: the annotation cannot be used, or names a picture twice.
        """
        from video_llama.datasets.tables import read_captions

        path = info.require_path("storage") / ANNOTATION
        folder = path.parent / "image"
        value = read_json(path)
        if not isinstance(value, dict) or "annotations" not in value:
            raise ConfigError(f"{path}: no 'annotations' at the top, {FORM} expected")
        found = entries(path, value["annotations"], FORM)
        for entry in found:
            if type(entry.get("image_id")) is int:  # MiniGPT-4 writes texts, LLaVA-CC3M numbers
                entry["image_id"] = str(entry["image_id"])
        locate = partial(_locate, folder)
        return read_captions(path, found, "image_id", locate=locate, folder=folder)


def _locate(folder: Path, image_id: str) -> tuple[str, Path]:
    return f"{image_id}.jpg", folder / f"{image_id}.jpg"
