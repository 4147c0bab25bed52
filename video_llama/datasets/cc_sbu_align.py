"""MiniGPT-4's second stage, and LLaVA-CC3M in its layout: pictures with long captions."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from video_llama.datasets.annotations import (
    check_unique_names,
    column,
    entries,
    read_json,
    text_of,
)
from video_llama.datasets.records import Records, TableRecords
from video_llama.types import ConfigError

ANNOTATION = "filter_cap.json"
FORM = '{"annotations": [{"image_id": "...", "caption": "..."}, ...]}'


def read_cc_sbu_align(storage: Path) -> Records:
    """The pictures of `filter_cap.json`; their captions stay as they are.

    Args:
        storage: holds `filter_cap.json` and `image/{image_id}.jpg`.

    Raises:
        ConfigError: the annotation cannot be used, or names a picture twice.
    """
    path = storage / ANNOTATION
    value = read_json(path)
    if not isinstance(value, dict) or "annotations" not in value:
        raise ConfigError(f"{path}: no 'annotations' at the top, {FORM} expected")
    found = entries(path, value["annotations"], FORM)
    images, captions = [], []
    for number, entry in enumerate(found):
        place = f"{path}: entry {number}"
        image = entry.get("image_id")
        images.append(str(image) if type(image) is int else text_of(place, entry, "image_id"))
        captions.append(text_of(place, entry, "caption"))
    check_unique_names(path, images, "image_id")
    folder = storage / "image"
    locate = partial(_locate, folder)
    return TableRecords([column(images)], column(captions), locate=locate, folder=folder)


def _locate(folder: Path, image_id: str) -> tuple[str, Path]:
    return f"{image_id}.jpg", folder / f"{image_id}.jpg"
