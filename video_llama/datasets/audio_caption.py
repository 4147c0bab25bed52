"""Sounds with captions: a table or a JSON list."""

from __future__ import annotations

from functools import partial
from pathlib import Path

from video_llama.datasets.annotations import (
    check_unique_names,
    column,
    entries,
    read_json,
    read_tables,
    text_of,
)
from video_llama.datasets.records import Records, TableRecords

COLUMNS = ("audio", "caption")
FORM = '[{"audio": "...", "caption": "..."}, ...]'


def read_audio_caption(anno_dir: Path, videos_dir: Path) -> Records:
    """The sounds of tables with the columns audio and caption, or of a JSON list.

    Args:
        anno_dir: a json, csv or tsv file, or a folder of tables.
        videos_dir: holds `{audio}`: wav, flac, mp3, mp4 or whatever else has sound.

    Raises:
        ConfigError: the annotation cannot be used, or names a sound twice.
    """
    locate = partial(_locate, videos_dir)
    if anno_dir.suffix.lower() != ".json":
        table = read_tables(anno_dir, COLUMNS, filled=COLUMNS, key="audio")
        return TableRecords([table["audio"]], table["caption"], locate=locate, folder=videos_dir)
    sounds, captions = [], []
    for number, entry in enumerate(entries(anno_dir, read_json(anno_dir), FORM)):
        place = f"{anno_dir}: entry {number}"
        sounds.append(text_of(place, entry, "audio"))
        captions.append(text_of(place, entry, "caption"))
    check_unique_names(anno_dir, sounds, "audio")
    return TableRecords([column(sounds)], column(captions), locate=locate, folder=videos_dir)


def _locate(videos_dir: Path, audio: str) -> tuple[str, Path]:
    return audio, videos_dir / audio
