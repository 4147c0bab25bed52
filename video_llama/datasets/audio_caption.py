"""Sounds with captions: tables or a JSON list."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from video_llama.datasets.base import (
    DATASETS,
    AudioProcessors,
    DatasetSettings,
    SplitInfo,
    VisProcessors,
)
from video_llama.datasets.records import (
    Records,
    entries,
    read_json,
)
from video_llama.processors.settings import AudioSettings

COLUMNS = ("audio", "caption")
FORM = '[{"audio": "...", "caption": "..."}, ...]'


@DATASETS.register("audio_caption")
@dataclass(kw_only=True)
class AudioCaptionSettings(DatasetSettings):
    """Sounds with captions, for the audio branch: sound files, or the sound of clips."""

    data_type: str = "audio"
    """See `DatasetSettings`."""
    vis_processor: VisProcessors = field(default_factory=VisProcessors)
    """See `DatasetSettings`."""
    audio_processor: AudioProcessors = field(
        default_factory=lambda: AudioProcessors(train=AudioSettings())
    )
    """See `DatasetSettings`."""

    def read(self, info: SplitInfo) -> Records:
        """Read tables with the columns audio and caption, or a JSON list.

        `anno_dir` is a json, csv or tsv file, or a folder of tables, `videos_dir` holds
        `{audio}`: wav, flac, mp3, mp4 or whatever else has sound.

        Raises:
            ConfigError: the annotation cannot be used, or names a sound twice.
        """
        from video_llama.datasets.tables import TableRecords, read_captions, read_tables

        path, folder = info.require_path("anno_dir"), info.require_path("videos_dir")
        locate = partial(_locate, folder)
        if path.suffix.lower() != ".json":
            table = read_tables(path, COLUMNS, key="audio", caption="caption")
            return TableRecords([table["audio"]], table["caption"], locate=locate, folder=folder)
        found = entries(path, read_json(path), FORM)
        return read_captions(path, found, "audio", locate=locate, folder=folder)


def _locate(folder: Path, audio: str) -> tuple[str, Path]:
    return audio, folder / audio
