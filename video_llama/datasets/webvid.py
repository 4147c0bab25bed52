"""WebVid: tables of clips with short captions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar

from video_llama.datasets.base import DATASETS, SplitInfo, VideoDatasetSettings
from video_llama.datasets.records import Records

COLUMNS = ("videoid", "page_dir", "name")


@DATASETS.register("webvid")
@dataclass(kw_only=True)
class WebvidSettings(VideoDatasetSettings):
    """Clips with short captions (WebVid)."""

    train_sampling: ClassVar[str] = "headtail"
    """See `DatasetSettings`."""

    def read(self, info: SplitInfo) -> Records:
        """Read tables with the columns videoid, page_dir and name (the caption).

        `anno_dir` is a csv or tsv file, or a folder of them, `videos_dir` holds
        `{page_dir}/{videoid}.mp4`. A page_dir may be empty.

        Raises:
            ConfigError: a table lacks a column or a caption, or has a videoid twice.
        """
        from video_llama.datasets.tables import TableRecords, read_tables

        folder = info.require_path("videos_dir")
        path = info.require_path("anno_dir")
        table = read_tables(path, COLUMNS, key="videoid", caption="name")
        return TableRecords(
            (table["page_dir"], table["videoid"]),
            table["name"],
            locate=partial(_locate, folder),
            folder=folder,
        )


def _locate(folder: Path, page_dir: str, videoid: str) -> tuple[str, Path]:
    name = f"{page_dir}/{videoid}.mp4" if page_dir else f"{videoid}.mp4"
    return name, folder / name
