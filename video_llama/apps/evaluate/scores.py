"""Scores of answers: exact match by type of question, with chance and a confidence interval."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from video_llama.apps.evaluate.questions import ClipQuestion, chosen_option
from video_llama.runners.task import is_exact_match, normalised

Z = 1.959964
"""Standard deviations on both sides of the middle that hold 95 % of a normal distribution."""

DIRECTION = "direction"
"""Type of the scores that compare a motion with its opposite."""

_ORDER = (
    *("kind", "colour", "count", "motion", DIRECTION, "order", "see", "see_nothing", "empty"),
    *("hear", "hear_nothing", "sound_order", "silent"),
)
"""In which types of questions are listed; others follow."""

_SPACE = "  "


@dataclass(frozen=True, kw_only=True)
class ScoredAnswer:
    """An answer to one question under one condition.

    Attributes:
        condition: what the model was given.
        error: why it was not asked; empty if it was.
    """

    question: ClipQuestion
    condition: str
    answer: str = ""
    error: str = ""

    @property
    def is_right(self) -> bool:
        """Whether the answer matches but for case, punctuation and white space, or chooses it."""
        if self.question.is_choice:
            return chosen_option(self.answer, self.question.options) == self.question.answer
        return is_exact_match(self.answer, self.question.answer)

    def to_json(self) -> dict[str, Any]:
        """Return what a file of answers says of it."""
        question = self.question
        return {
            "item_id": question.item_id,
            "type": question.type,
            "condition": self.condition,
            "question": question.question,
            "reference": question.answer,
            "answer": self.answer,
            "chance": question.chance,
            "opposite": question.opposite,
            "contradictory": question.contradictory,
            "is_right": self.is_right,
        }


@dataclass(frozen=True, kw_only=True)
class Score:
    """How many of `count` answers to a type of question are right, beside a guesser's share."""

    type: str
    condition: str
    right: int
    count: int
    chance: float

    @property
    def share(self) -> float:
        """Right answers over questions."""
        return self.right / self.count

    @property
    def interval(self) -> tuple[float, float]:
        """95 % interval of the share."""
        return wilson_interval(self.right, self.count)

    def to_json(self) -> dict[str, Any]:
        """Return everything about it, for a file."""
        low, high = self.interval
        return asdict(self) | {"share": self.share, "interval": [low, high]}


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """Compute the 95 % interval of a share (Wilson, J. of the American Statistical Assoc., 1927).

    Raises:
        ValueError: no trials, or more hits than trials.
    """
    if not 0 <= right <= count or count == 0:
        raise ValueError(f"{right} right of {count}: 0 to count expected, and at least one trial")
    # Wilson's interval stays within 0 and 1, also where all answers are right.
    share, weight = right / count, Z * Z / count
    middle = (share + weight / 2) / (1 + weight)
    reach = Z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def scores_of(answers: Iterable[ScoredAnswer]) -> list[Score]:
    """Score every type and condition; contradictory clips are types of their own.

    Of motions there is also a score `direction`, in all and for each opposite pair: among answers
    that name the true direction or its opposite, the share of the true one, which a guesser gets
    half of the time.
    """
    groups: dict[tuple[str, str], list[ScoredAnswer]] = defaultdict(list)
    for answer in answers:
        question = answer.question
        # Sound and picture disagree there: mixed in they would hide what either is good for.
        kind = f"{question.type}, contradictory" if question.contradictory else question.type
        groups[kind, answer.condition].append(answer)
        # Only answers that name one of the two directions say which one was seen.
        directions = [] if question.opposite is None else [question.answer, question.opposite]
        if normalised(answer.answer) in map(normalised, directions):
            pair = " or ".join(sorted(directions))
            for kind in (DIRECTION, f"{DIRECTION}, {pair}"):
                groups[kind, answer.condition].append(answer)
    return [
        Score(
            type=kind,
            condition=condition,
            right=sum(answer.is_right for answer in group),
            count=len(group),
            chance=0.5
            if kind.split(",")[0] == DIRECTION
            else sum(answer.question.chance for answer in group) / len(group),
        )
        for (kind, condition), group in sorted(groups.items(), key=lambda entry: _rank(entry[0][0]))
    ]


def score_table(scores: Sequence[Score], *, width: int | None = None) -> str:
    """Write the scores as a table: a line for every type, a column for every condition, in percent.

    Args:
        scores: of any types and conditions.
        width: most characters of a line; conditions that find no place follow below. None: any.
    """
    conditions = list(dict.fromkeys(score.condition for score in scores))
    kinds = list(dict.fromkeys(score.type for score in scores))
    found = {(score.type, score.condition): score for score in scores}
    # Three columns of labels, then one for each condition.
    rows = [["question", "asked", "chance", *conditions]]
    for kind in kinds:
        cells = [found.get((kind, condition)) for condition in conditions]
        (first, *_) = (cell for cell in cells if cell is not None)
        rows.append([kind, str(first.count), f"{100 * first.chance:.0f}", *map(_cell, cells)])
    # Cells are padded to columns: the table is read in a terminal.
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    # Each block of columns repeats the labels, so that it can be read alone.
    labels = [1, 2]
    blocks = [labels]
    for column in range(3, len(widths)):
        taken = sum(widths[c] + len(_SPACE) for c in (0, *blocks[-1])) + widths[column]
        if width is not None and taken > width and blocks[-1] != labels:
            blocks.append(labels)
        blocks[-1] = [*blocks[-1], column]
    return "\n\n".join(_block(rows, widths, columns) for columns in blocks)


def _block(rows: Sequence[Sequence[str]], widths: Sequence[int], columns: Sequence[int]) -> str:
    head, *lines = (
        _SPACE.join([row[0].ljust(widths[0]), *(row[c].rjust(widths[c]) for c in columns)])
        for row in rows
    )
    return "\n".join([head, "-" * len(head), *lines])


def _rank(kind: str) -> int:
    """Rank a type: contradictions after the others, directions right after motions."""
    base, *rest = kind.split(", ")
    if base in _ORDER:
        return _ORDER.index(base) + (len(_ORDER) if rest == ["contradictory"] else 0)
    return 2 * len(_ORDER)


def _cell(score: Score | None) -> str:
    if score is None:
        return "-"
    low, high = score.interval
    return f"{100 * score.share:.0f} ({100 * low:.0f}-{100 * high:.0f})"
