"""VideoChat's instructions, English or Chinese: conversations about clips."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from video_llama.datasets.base import DATASETS, SplitInfo, VideoDatasetSettings
from video_llama.datasets.records import Records, Turns, text_of
from video_llama.types import ConfigError

FORM = '[{"video": "...", "QA": [{"q": "...", "a": "..."}, ...]}, ...]'


@DATASETS.register("webvid_instruct")
@dataclass(kw_only=True)
class WebvidInstructSettings(VideoDatasetSettings):
    """Conversations about clips (VideoChat)."""

    has_conversations: ClassVar[bool] = True
    """See `DatasetSettings`."""

    def read(self, info: SplitInfo) -> Records:
        """Read the conversations of a JSON list.

        `anno_dir` is the file, `videos_dir` holds `{video}`.

        Raises:
            ConfigError: the annotation cannot be used.
        """
        from video_llama.datasets.tables import read_conversations

        path, folder = info.require_path("anno_dir"), info.require_path("videos_dir")
        locate = partial(_locate, folder)
        return read_conversations(path, FORM, "video", _turns, locate=locate, folder=folder)


@DATASETS.register("webvid_instruct_zh")
@dataclass(kw_only=True)
class WebvidInstructZhSettings(WebvidInstructSettings):
    """Conversations about clips, in Chinese."""

    data_type: str = "video_cn"
    """See `DatasetSettings`."""


def _turns(place: str, entry: dict[str, Any]) -> Turns:
    pairs = entry.get("QA")
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) for pair in pairs):
        raise ConfigError(f"{place}: QA is no list of questions with answers; {FORM} expected")
    if not pairs:
        raise ConfigError(f"{place}: QA is empty, at least one question with answer expected")
    return [
        (
            _question(f"{place}, QA {number}", pair),
            text_of(f"{place}, QA {number}", pair, "a"),
        )
        for number, pair in enumerate(pairs)
    ]


def _question(place: str, pair: dict[str, Any]) -> str:
    """Return the prompt of a pair: VideoChat's instruction `i`, where there is one, before `q`.

    Without it a model would have to guess, say, that options are to be answered with a letter.
    """
    question = text_of(place, pair, "q", filled=False)
    # Captions have an instruction and an empty question, conversations often no instruction.
    if pair.get("i") is None:
        return question
    instruction = text_of(place, pair, "i", filled=False)
    return f"{instruction} {question}" if instruction and question else instruction or question


def _locate(folder: Path, video: str) -> tuple[str, Path]:
    return video, folder / video
