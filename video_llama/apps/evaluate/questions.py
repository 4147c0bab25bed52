"""Questions about clips with their answers: reading them, and whose clip to show instead."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from video_llama.types import ConfigError

Condition = Literal["all", "withheld", "other", "picture", "sound", "shuffled"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
"""What the model is given: the clip, nothing, another item's clip, its frames only, its sound only,
or its frames only and in random order (with the sound, that would tell what comes first)."""


@dataclass(frozen=True, kw_only=True)
class ClipQuestion:
    """A question about a clip.

    Attributes:
        item_id: which.
        path: the clip.
        question: its text.
        answer: the right answer.
        type: what it asks for.
        chance: share of right answers of a guesser; 0 where that is not known.
        options: what a guesser would choose from; empty where that is not known.
        opposite: the answer that reversed frames would have.
        contradictory: whether sound and picture show different things.
    """

    item_id: str
    path: Path
    question: str
    answer: str
    type: str = "question"
    chance: float = 0.0
    options: tuple[str, ...] = ()
    opposite: str | None = None
    contradictory: bool = False


def read_questions(path: Path, media_dir: Path, *, limit: int | None = None) -> list[ClipQuestion]:
    """Questions of a file: those of `video-llama data synth`, or any in VideoChat's format.

    Args:
        path: a JSON list.
        media_dir: what the paths in it are relative to.
        limit: most questions of a type, of which whole rounds are taken, so that all answers stay
            equally frequent; None: all.

    Raises:
        ConfigError: the file is of neither kind.
    """
    try:
        entries = json.loads(path.read_text("utf-8"))
        found = [question for entry in entries for question in _questions(entry, media_dir)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path}: not a list of questions ({error!r}); the questions.json of "
            '`video-llama data synth` or [{"video": ..., "QA": [{"q": ..., "a": ...}]}] expected'
        ) from error
    kept = found if limit is None else _limited(found, limit)
    if not kept:
        raise ConfigError(f"{path}: it has no questions")
    return kept


def _questions(entry: dict[str, Any], media_dir: Path) -> Iterator[ClipQuestion]:
    if "QA" in entry:
        for number, pair in enumerate(entry["QA"]):
            yield ClipQuestion(
                item_id=f"{entry['video']}/{number}",
                path=media_dir / entry["video"],
                question=pair["q"],
                answer=pair["a"],
            )
        return
    yield ClipQuestion(
        item_id=entry["id"],
        path=media_dir / entry["path"],
        question=entry["question"],
        answer=entry["answer"],
        type=entry["type"],
        chance=entry["chance"],
        options=tuple(entry.get("options", ())),
        opposite=entry["opposite"],
        contradictory=entry["contradictory"],
    )


def _limited(questions: Sequence[ClipQuestion], limit: int) -> list[ClipQuestion]:
    answers: dict[tuple[str, bool], set[str]] = defaultdict(set)
    for question in questions:
        answers[question.type, question.contradictory].add(question.answer)
    counts: Counter[tuple[str, bool]] = Counter()
    kept = []
    for question in questions:
        key = (question.type, question.contradictory)
        # A question of order has two options, though the answers to its type are many.
        in_round = min(len(answers[key]), len(question.options) or 1)
        counts[key] += 1
        if counts[key] <= max(limit - limit % in_round, min(limit, in_round)):
            kept.append(question)
    return kept


def other_clips(questions: Sequence[ClipQuestion]) -> list[Path]:
    """For each question the clip of another one, such that its own answer is right by chance.

    The other clip is one of which the same is asked. In turn its answer is the first, the second,
    ... of all answers to that question after the true one: whoever reports what the other clip
    shows is right once in as many questions as there are answers.

    Args:
        questions: all that are asked.

    Returns:
        A path for each question. Where every answer is the same, or answers are not of a fixed
        set, it is the clip that stands half of the list away.
    """
    paths = list(dict.fromkeys(question.path for question in questions))
    far = dict(zip(paths, paths[len(paths) // 2 :] + paths, strict=False))
    found = [far[question.path] for question in questions]
    rounds: Counter[str] = Counter()
    for (kind, *_), answers in _comparable(questions).items():
        several = list(answers.values())
        length = min(map(len, several))
        for which, places in enumerate(several):
            for number, place in enumerate(places):
                shift = (number + rounds[kind]) % len(several)
                if not shift and len(places) == 1:
                    shift = 1  # of the same answer there is no other clip
                others = several[(which + shift) % len(several)]
                chosen = others[(number + (not shift)) % len(others)]
                found[place] = questions[chosen].path
        rounds[kind] += length
    return found


def _comparable(questions: Sequence[ClipQuestion]) -> dict[tuple[str, ...], dict[str, list[int]]]:
    """Places of questions that have the same options, by their answers, which are several."""
    groups: dict[tuple[str, ...], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, question in enumerate(questions):
        if question.options:
            key = (question.type, str(question.contradictory), *sorted(question.options))
            groups[key][question.answer].append(place)
    return {key: answers for key, answers in groups.items() if len(answers) > 1}
