"""Questions about clips with their answers: reading them, and whose clip to show instead."""

from __future__ import annotations

import json
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

from video_llama.datasets.records import read_json
from video_llama.runners.task import normalised
from video_llama.text.tokenizer import clean_text
from video_llama.types import ConfigError

Condition = Literal["all", "withheld", "other", "picture", "sound", "shuffled"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
"""What the model is given: the clip, nothing, another item's clip, its frames only, its sound only,
or its frames only and in random order (with the sound, that would tell what comes first)."""


_FORMS = (
    "the questions.json of `video-llama data synth` or "
    '[{"video": ..., "QA": [{"q": ..., "a": ...}]}]'
)
LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_LETTER = re.compile(
    r"""\s*(?:(?:the\ )?(?:best\ |correct\ )?(?:answer|option|choice)(?:\ is)?\s*:?\s*)?
    (?: \((?P<bracketed>[A-Z])\) | (?P<marked>[A-Z])(?:[.):]|\s*$) )""",
    re.VERBOSE | re.IGNORECASE,
)
"""`B`, `(B)`, `B.`, `B) a drum`, `Answer: B`; not the first word of `A bell rings`."""


@dataclass(frozen=True, kw_only=True)
class ClipQuestion:
    """A question about a clip.

    Attributes:
        type: what it asks for.
        chance: share of right answers of a guesser; 0 where that is not known.
        options: what a guesser would choose from; empty where that is not known.
        opposite: the answer that reversed frames would have.
        contradictory: whether sound and picture show different things.
        is_choice: whether the options stand in the question with letters, one of which is asked.
        error: why it cannot be asked; empty if it can.
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
    is_choice: bool = False
    error: str = ""


def read_questions(path: Path, media_dir: Path, *, limit: int | None = None) -> list[ClipQuestion]:
    """Read a list of questions of `video-llama data synth`, or of any in VideoChat's format.

    Args:
        path: of the list.
        media_dir: what the paths in it are relative to.
        limit: most questions of a type, of which whole rounds are taken, so that all answers stay
            equally frequent; None: all.

    Raises:
        ConfigError: the file cannot be read, or is of neither kind; names the entry.
    """
    entries = read_json(path)
    if not isinstance(entries, list):
        raise ConfigError(f"{path}: not a list of questions; {_FORMS} expected")
    # A clip may have several entries. Its questions are numbered through them.
    counts: Counter[str] = Counter()
    found: list[ClipQuestion] = []
    for number, entry in enumerate(entries):
        place = f"{path}: entry {number}"
        if not isinstance(entry, dict):
            raise ConfigError(f"{place}: {_json(entry)} given; {_FORMS} expected")
        if "QA" in entry:
            found += _conversation(place, entry, media_dir, counts)
        elif "candidates" in entry:
            found.append(_choice_question(place, entry, media_dir, counts))
        else:
            found.append(_scored_question(place, entry, media_dir))
    kept = found if limit is None else _limited(found, limit)
    if not kept:
        raise ConfigError(f"{path}: it has no questions")
    return kept


def _conversation(
    place: str, entry: dict[str, Any], media_dir: Path, counts: Counter[str]
) -> Iterator[ClipQuestion]:
    """Yield the pairs of an entry in VideoChat's format; `counts` numbers those of each clip."""
    pairs = entry["QA"]
    if not isinstance(pairs, list) or not all(isinstance(pair, dict) for pair in pairs):
        raise ConfigError(f"{place}: QA is no list of objects; {_FORMS} expected")
    for number, pair in enumerate(pairs):
        values = [
            _text(place, entry, "video"),
            *(_text(f"{place}, QA {number}", pair, key) for key in ("q", "a")),
            ("", "") if pair.get("i") is None else _text(place, pair, "i"),
        ]
        (video, question, answer, instruction), errors = zip(*values, strict=True)
        # A value that is no text spoils this question, and no other.
        yield ClipQuestion(
            item_id=f"{video}/{counts[video]}",
            path=media_dir / video,
            # The instruction belongs to the prompt, as in training (webvid_instruct).
            question=" ".join(filter(None, (instruction, question))),
            answer=answer,
            error=next(filter(None, errors), ""),
        )
        counts[video] += 1


def _choice_question(
    place: str, entry: dict[str, Any], media_dir: Path, counts: Counter[str]
) -> ClipQuestion:
    """Read an entry in MVBench's format: video, question, candidates and one of them as answer."""
    values = [_text(place, entry, key) for key in ("video", "question", "answer")]
    (video, question, answer), errors = zip(*values, strict=True)
    options = entry["candidates"]
    if not isinstance(options, list) or not 2 <= len(options) <= len(LETTERS):
        raise ConfigError(
            f"{place}: candidates: {_json(options)} given, a list of 2 to 26 expected"
        )
    texts = [clean_text(str(option)) for option in options]
    if answer not in texts:
        raise ConfigError(f"{place}: answer {answer!r} is none of the candidates {_json(options)}")
    lines = [f"({letter}) {text}" for letter, text in zip(LETTERS, texts, strict=False)]
    counts[video] += 1
    return ClipQuestion(
        item_id=f"{video}/{counts[video] - 1}",
        path=media_dir / video,
        question="\n".join([question, *lines, "Answer with the letter of the right option."]),
        answer=answer,
        type=str(entry.get("task_type") or "question"),
        chance=1 / len(texts),
        options=tuple(texts),
        is_choice=True,
        error=next(filter(None, errors), ""),
    )


def chosen_option(answer: str, options: Sequence[str]) -> str | None:
    """Return the option that an answer names by its letter or its text; None if it names none.

    An answer that holds the texts of several options chooses none.
    """
    match = _LETTER.match(answer)
    if match:
        place = LETTERS.index((match["bracketed"] or match["marked"]).upper())
        return options[place] if place < len(options) else None
    given = normalised(answer)
    named = [option for option in options if normalised(option) == given]
    named = named or [o for o in options if f" {normalised(o)} " in f" {given} "]
    return named[0] if len(named) == 1 else None


def _scored_question(place: str, entry: dict[str, Any], media_dir: Path) -> ClipQuestion:
    """Read an entry in the format of `video-llama data synth`."""
    values = [_text(place, entry, key) for key in ("id", "path", "question", "answer", "type")]
    (item_id, video, question, answer, kind), errors = zip(*values, strict=True)
    chance = entry.get("chance")
    if isinstance(chance, bool) or not isinstance(chance, int | float) or not 0 <= chance <= 1:
        raise ConfigError(f"{place}: chance: {_json(chance)} given, a number from 0 to 1 expected")
    # Required also where they are null: a file without them is of another kind.
    for key in ("opposite", "contradictory"):
        if key not in entry:
            raise ConfigError(f"{place} has no {key!r}; {_FORMS} expected")
    return ClipQuestion(
        item_id=item_id,
        path=media_dir / video,
        question=question,
        answer=answer,
        type=kind,
        chance=chance,
        options=tuple(map(str, entry.get("options") or ())),
        opposite=None if entry["opposite"] is None else str(entry["opposite"]),
        contradictory=bool(entry["contradictory"]),
        error=next(filter(None, errors), ""),
    )


def _text(place: str, entry: dict[str, Any], key: str) -> tuple[str, str]:
    """Return a value as text without lone surrogates, and what is wrong with it.

    Raises:
        ConfigError: there is no such key.
    """
    if key not in entry:
        found = ", ".join(map(repr, entry)) or "none"
        raise ConfigError(f"{place} has no {key!r} (keys: {found}); {_FORMS} expected")
    value = entry[key]
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    # "How many?" is often answered with a number. True and null would be guesses.
    if isinstance(value, str | int | float) and not isinstance(value, bool):
        return clean_text(str(value)), ""
    return "", f"{key}: {_json(value)} given, a text or a number expected"


def _json(value: Any) -> str:
    return json.dumps(value)[:60]


def _limited(questions: Sequence[ClipQuestion], limit: int) -> list[ClipQuestion]:
    answers: dict[tuple[str, bool], set[str]] = defaultdict(set)
    # How many different answers each type has, which is what a round consists of.
    for question in questions:
        answers[question.type, question.contradictory].add(question.answer)
    counts: Counter[tuple[str, bool]] = Counter()
    kept = []
    for question in questions:
        # Contradictory clips are types of their own, as in the scores.
        key = (question.type, question.contradictory)
        # A question of order has two options, though the answers to its type are many.
        in_round = min(len(answers[key]), len(question.options) or 1)
        counts[key] += 1
        if counts[key] <= max(limit - limit % in_round, min(limit, in_round)):
            kept.append(question)
    return kept


def other_clips(questions: Sequence[ClipQuestion]) -> list[Path]:
    """Choose for each question the clip of another, so that its own answer is right by chance.

    The other clip is one of which the same is asked. In turn its answer is the first, the second,
    ... of all answers to that question after the true one: whoever reports what the other clip
    shows is right once in as many questions as there are answers.

    Args:
        questions: all that are asked.

    Returns:
        A path for each question. Where every answer is the same, or answers are not of a fixed
        set, it is the clip that stands half of the list away.
    """
    # Where answers are free texts nothing better is known than a clip far away.
    paths = list(dict.fromkeys(question.path for question in questions))
    far = dict(zip(paths, paths[len(paths) // 2 :] + paths, strict=False))
    found = [far[question.path] for question in questions]
    rounds: Counter[str] = Counter()
    for (kind, *_), answers in _comparable(questions).items():
        several = list(answers.values())
        length = min(map(len, several))
        for which, places in enumerate(several):
            # Deal the other answers evenly, beginning elsewhere in each group of one type.
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
    """Group places of questions with the same options by their answers, which are several."""
    groups: dict[tuple[str, ...], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, question in enumerate(questions):
        if question.options:
            key = (question.type, str(question.contradictory), *sorted(question.options))
            groups[key][question.answer].append(place)
    return {key: answers for key, answers in groups.items() if len(answers) > 1}
