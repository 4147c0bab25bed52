"""LLaVA's instructions: conversations about pictures of COCO."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from video_llama.datasets.base import DATASETS, DatasetSettings, SplitInfo
from video_llama.datasets.records import Records, Turns, text_of
from video_llama.types import ConfigError

FORM = (
    '[{"image": "...", "conversations": [{"from": "human", "value": "..."}, '
    '{"from": "gpt", "value": "..."}, ...]}, ...]'
)
MARK = "<image>"


@DATASETS.register("llava_instruct")
@dataclass(kw_only=True)
class LlavaInstructSettings(DatasetSettings):
    """Conversations about pictures (LLaVA)."""

    has_conversations: ClassVar[bool] = True
    """See `DatasetSettings`."""

    def read(self, info: SplitInfo) -> Records:
        """Read the conversations of a JSON list.

        `anno_dir` is the file, `videos_dir` holds `COCO_train2014_{image}`, or else `{image}`.

        Raises:
            ConfigError: the annotation cannot be used, or a conversation has not one `<image>`.
        """
        from video_llama.datasets.tables import read_conversations

        path, folder = info.require_path("anno_dir"), info.require_path("videos_dir")
        locate = partial(_locate, folder)
        return read_conversations(path, FORM, "image", _turns, locate=locate, folder=folder)


def _turns(place: str, entry: dict[str, Any]) -> Turns:
    sentences = entry.get("conversations")
    if not isinstance(sentences, list) or not sentences or len(sentences) % 2:
        raise ConfigError(f"{place}: conversations are not questions with answers; {FORM} expected")
    # One picture, one place for it: the number of media positions in a batch must be known.
    texts = [_sentence(place, number, sentence) for number, sentence in enumerate(sentences)]
    turns = list(zip(texts[::2], texts[1::2], strict=True))
    marks = sum(question.count(MARK) for question, _ in turns)
    if marks != 1:
        raise ConfigError(
            f"{place}: {marks} times {MARK} in its questions, one expected: where the picture goes"
        )
    return turns


def _sentence(place: str, number: int, sentence: Any) -> str:
    role = ("human", "gpt")[number % 2]
    if not isinstance(sentence, dict) or sentence.get("from") != role:
        raise ConfigError(f"{place}: sentence {number} is not from {role!r}; {FORM} expected")
    return text_of(f"{place}, sentence {number}", sentence, "value", filled=role == "gpt")


def _locate(folder: Path, image: str) -> tuple[str, Path]:
    # LLaVA's files name pictures without the prefix that COCO's have.
    path = folder / f"COCO_train2014_{image}"
    try:
        found = path.exists()
    except OSError:  # a name that is too long: the item cannot be read, the others can
        found = False
    return image, path if found else folder / image
