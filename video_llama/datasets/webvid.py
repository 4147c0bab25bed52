"""WebVid: tables of clips with short captions."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from video_llama.datasets.annotations import read_tables
from video_llama.datasets.records import Records, TableRecords

COLUMNS = ("videoid", "page_dir", "name")


def read_webvid(anno_dir: Path, videos_dir: Path) -> Records:
    """The clips of tables with the columns videoid, page_dir and name (the caption).

    Args:
        anno_dir: a csv or tsv file, or a folder of them, read in the order of their names.
        videos_dir: holds `{page_dir}/{videoid}.mp4`; a page_dir may be empty.

    Raises:
        ConfigError: a table cannot be used, lacks a column or a caption, or has a videoid twice.
    """
    table = read_tables(anno_dir, COLUMNS, filled=["videoid", "name"], key="videoid")
    names = (table["page_dir"], table["videoid"])
    locate = partial(_locate, videos_dir)
    return TableRecords(names, table["name"], locate=locate, folder=videos_dir)


def _locate(videos_dir: Path, page_dir: str | None, videoid: str) -> tuple[str, Path]:
    name = f"{page_dir}/{videoid}.mp4" if page_dir else f"{videoid}.mp4"
    return name, videos_dir / name
