"""Scores of answers: exact match by type of question, with chance and a confidence interval."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from video_llama.tasks.matching import is_exact_match, normalised

Z = 1.959964
"""Standard deviations on both sides of the middle that hold 95 % of a normal distribution."""


@dataclass(frozen=True, kw_only=True)
class ScoredAnswer:
    """An answer to one question under one condition.

    Attributes:
        item_id: which question.
        type: what it asks for.
        condition: what the model was given.
        question: its text.
        reference: the right answer.
        answer: what the model said.
        chance: share of right answers of a guesser.
        opposite: the answer that the same frames in reverse order would have, if any.
        contradictory: whether sound and picture show different things.
    """

    item_id: str
    type: str
    condition: str
    question: str
    reference: str
    answer: str
    chance: float
    opposite: str | None = None
    contradictory: bool = False

    @property
    def is_right(self) -> bool:
        """Whether the answer matches but for case, punctuation and white space."""
        return is_exact_match(self.answer, self.reference)


@dataclass(frozen=True, kw_only=True)
class Score:
    """The share of right answers of a group.

    Attributes:
        type: of the questions.
        condition: what the model was given.
        right: number of right answers.
        count: number of questions.
        chance: share of right answers of a guesser.
    """

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
        """Everything about it, for a file."""
        low, high = self.interval
        return asdict(self) | {"share": self.share, "interval": [low, high]}


def wilson_interval(right: int, count: int) -> tuple[float, float]:
    """95 % interval of a share (Wilson, Journal of the American Statistical Association, 1927).

    Args:
        right: number of hits.
        count: number of trials, at least 1.

    Raises:
        ValueError: no trials, or more hits than trials.
    """
    if not 0 <= right <= count or count == 0:
        raise ValueError(f"{right} right of {count}: 0 to count expected, and at least one trial")
    share, weight = right / count, Z * Z / count
    middle = (share + weight / 2) / (1 + weight)
    reach = Z / (1 + weight) * math.sqrt(share * (1 - share) / count + weight / (4 * count))
    return max(0.0, middle - reach), min(1.0, middle + reach)


def scores_of(answers: Iterable[ScoredAnswer]) -> list[Score]:
    """One score for every type and condition; contradictory clips are types of their own.

    Of motions there is also a score `direction`: among answers that name the true direction or its
    opposite, the share of the true one, which a guesser gets half of the time.
    """
    groups: dict[tuple[str, str], list[ScoredAnswer]] = defaultdict(list)
    for answer in answers:
        kind = f"{answer.type}, contradictory" if answer.contradictory else answer.type
        groups[kind, answer.condition].append(answer)
        if answer.opposite is not None and _names_a_direction(answer):
            groups["direction", answer.condition].append(answer)
    return [
        Score(
            type=kind,
            condition=condition,
            right=sum(answer.is_right for answer in group),
            count=len(group),
            chance=0.5 if kind == "direction" else sum(a.chance for a in group) / len(group),
        )
        for (kind, condition), group in groups.items()
    ]


def score_table(scores: Sequence[Score]) -> str:
    """The scores as text: a line for every type, a column for every condition, in percent."""
    conditions = list(dict.fromkeys(score.condition for score in scores))
    kinds = list(dict.fromkeys(score.type for score in scores))
    found = {(score.type, score.condition): score for score in scores}
    rows = [["question", "chance", *conditions]]
    for kind in kinds:
        cells = [found.get((kind, condition)) for condition in conditions]
        chance = next(cell.chance for cell in cells if cell is not None)
        rows.append([kind, f"{100 * chance:.0f}", *map(_cell, cells)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return "\n".join(
        "  ".join(
            [row[0].ljust(widths[0])]
            + [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        )
        for row in rows
    )


def _names_a_direction(answer: ScoredAnswer) -> bool:
    named = normalised(answer.answer)
    return named in (normalised(answer.reference), normalised(answer.opposite or ""))


def _cell(score: Score | None) -> str:
    if score is None:
        return "-"
    low, high = score.interval
    return f"{100 * score.share:.0f} [{100 * low:.0f}, {100 * high:.0f}]"
