"""LLaVA's instructions: conversations about pictures of COCO."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from video_llama.datasets.annotations import column, entries, read_json, text_of
from video_llama.datasets.records import Records, TableRecords, Turns, pack_turns
from video_llama.types import ConfigError

FORM = (
    '[{"image": "...", "conversations": [{"from": "human", "value": "..."}, '
    '{"from": "gpt", "value": "..."}, ...]}, ...]'
)
MARK = "<image>"


def read_llava_instruct(anno_dir: Path, videos_dir: Path) -> Records:
    """The conversations of a JSON list.

    Args:
        anno_dir: the file.
        videos_dir: holds `COCO_train2014_{image}`, or else `{image}`.

    Raises:
        ConfigError: the annotation cannot be used, or a conversation does not have one `<image>`.
    """
    images, conversations = [], []
    for number, entry in enumerate(entries(anno_dir, read_json(anno_dir), FORM)):
        place = f"{anno_dir}: entry {number}"
        images.append(text_of(place, entry, "image"))
        conversations.append(pack_turns(_turns(place, entry)))
    return TableRecords(
        [column(images)],
        column(conversations),
        locate=partial(_locate, videos_dir),
        folder=videos_dir,
        has_conversations=True,
    )


def _turns(place: str, entry: dict[str, Any]) -> Turns:
    sentences = entry.get("conversations")
    if not isinstance(sentences, list) or not sentences or len(sentences) % 2:
        raise ConfigError(f"{place}: conversations are not questions with answers; {FORM} expected")
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


def _locate(videos_dir: Path, image: str) -> tuple[str, Path]:
    path = videos_dir / f"COCO_train2014_{image}"
    return image, path if _exists(path) else videos_dir / image


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # a name that is too long: the item cannot be read, the others can
        return False
