"""VideoChat's instructions, English or Chinese: conversations about clips."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from video_llama.datasets.annotations import column, entries, read_json, text_of
from video_llama.datasets.records import Records, TableRecords, Turns, pack_turns
from video_llama.types import ConfigError

FORM = '[{"video": "...", "QA": [{"q": "...", "a": "..."}, ...]}, ...]'


def read_webvid_instruct(anno_dir: Path, videos_dir: Path) -> Records:
    """The conversations of a JSON list.

    Args:
        anno_dir: the file.
        videos_dir: holds `{video}`.

    Raises:
        ConfigError: the annotation cannot be used.
    """
    videos, conversations = [], []
    for number, entry in enumerate(entries(anno_dir, read_json(anno_dir), FORM)):
        place = f"{anno_dir}: entry {number}"
        videos.append(text_of(place, entry, "video"))
        conversations.append(pack_turns(_turns(place, entry)))
    return TableRecords(
        [column(videos)],
        column(conversations),
        locate=partial(_locate, videos_dir),
        folder=videos_dir,
        has_conversations=True,
    )


def _turns(place: str, entry: dict[str, Any]) -> Turns:
    pairs = entry.get("QA")
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) for pair in pairs):
        raise ConfigError(f"{place}: QA is no list of questions with answers; {FORM} expected")
    if not pairs:
        raise ConfigError(f"{place}: QA is empty, at least one question with answer expected")
    return [
        (
            text_of(f"{place}, QA {number}", pair, "q", filled=False),
            text_of(f"{place}, QA {number}", pair, "a"),
        )
        for number, pair in enumerate(pairs)
    ]


def _locate(videos_dir: Path, video: str) -> tuple[str, Path]:
    return video, videos_dir / video
