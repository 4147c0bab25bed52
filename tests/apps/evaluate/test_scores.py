"""Scores of answers: shares, intervals and the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from video_llama.apps.evaluate.questions import ClipQuestion
from video_llama.apps.evaluate.scores import ScoredAnswer, score_table, scores_of, wilson_interval


def answer(said: str, reference: str = "left", **changes: Any) -> ScoredAnswer:
    condition = changes.pop("condition", "all")
    values: dict[str, Any] = {"type": "motion", "chance": 1 / 7, "opposite": "right", **changes}
    question = ClipQuestion(
        item_id="1", path=Path("1.mp4"), question="How does it move?", answer=reference, **values
    )
    return ScoredAnswer(question=question, condition=condition, answer=said)


@pytest.mark.parametrize(
    ("right", "count", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (5, 10, 0.2366, 0.7634),
        (10, 10, 0.7225, 1.0),
        (95, 100, 0.8882, 0.9785),
    ],
)
def test_the_interval_is_wilsons(right: int, count: int, low: float, high: float) -> None:
    assert wilson_interval(right, count) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize(("right", "count"), [(0, 0), (3, 2), (-1, 2)])
def test_impossible_counts_are_refused(right: int, count: int) -> None:
    with pytest.raises(ValueError, match="at least one trial"):
        wilson_interval(right, count)


def test_answers_are_counted_by_type_and_condition() -> None:
    answers = [
        answer("Left."),
        answer("right"),
        answer("a bell", "a bell", type="see", chance=1 / 6, opposite=None),
        answer("up", condition="withheld"),
        answer("a drum", "a bell", type="see", chance=1 / 6, opposite=None, contradictory=True),
    ]
    found = {(s.type, s.condition): (s.right, s.count) for s in scores_of(answers)}
    assert found == {
        ("motion", "all"): (1, 2),
        ("direction", "all"): (1, 2),
        ("direction, left or right", "all"): (1, 2),
        ("see", "all"): (1, 1),
        ("motion", "withheld"): (0, 1),
        ("see, contradictory", "all"): (0, 1),
    }


def test_direction_counts_only_answers_that_name_one() -> None:
    found = {s.type: s for s in scores_of([answer("left"), answer("right"), answer("growing")])}
    assert (found["motion"].right, found["motion"].count) == (1, 3)
    assert (found["direction"].right, found["direction"].count) == (1, 2)
    assert found["direction"].chance == 0.5


def test_directions_are_also_counted_for_each_opposite_pair() -> None:
    answers = [answer("left"), answer("right"), answer("up", "up", opposite="down")]
    found = {s.type: s for s in scores_of([*answers, answer("left", "down", opposite="up")])}
    left, up = found["direction, left or right"], found["direction, down or up"]
    assert (left.right, left.count) == (1, 2)
    assert (up.right, up.count) == (1, 1), "an answer outside of the pair does not count"
    assert found["direction"].count == 3


def test_scores_are_in_the_order_of_the_documentation() -> None:
    kinds = ["silent", "question", "hear", "kind", "see"]
    answers = [answer("a", type=kind, opposite=None) for kind in kinds]
    answers.append(answer("a", type="see", opposite=None, contradictory=True))
    found = [score.type for score in scores_of(answers)]
    assert found == ["kind", "see", "hear", "silent", "see, contradictory", "question"]


def test_the_table_has_a_line_for_each_type_and_a_column_for_each_condition() -> None:
    table = score_table(scores_of([answer("left"), answer("up", condition="withheld")]))
    head, rule, motion, *directions = table.splitlines()
    assert head.split() == ["question", "asked", "chance", "all", "withheld"]
    assert set(rule) == {"-"}
    assert motion.split()[:5] == ["motion", "1", "14", "100", "(21-100)"]
    assert len(directions) == 2
    assert all(line.split()[-1] == "-" for line in directions), "nothing names a direction"


def test_a_narrow_table_continues_below() -> None:
    conditions = ["all", "withheld", "other", "picture"]
    scores = scores_of([answer("left", condition=c, opposite=None) for c in conditions])
    table = score_table(scores, width=55)
    assert max(map(len, table.splitlines())) <= 55
    heads = [line.split()[3:] for line in table.splitlines() if line.startswith("question")]
    assert heads == [["all", "withheld"], ["other", "picture"]]
    assert score_table(scores, width=5).count("motion") == 4


def test_a_choice_is_right_by_its_letter() -> None:
    question = ClipQuestion(
        item_id="1",
        path=Path("a.mp4"),
        question="Which?",
        answer="a drum",
        options=("a bell", "a drum"),
        chance=0.5,
        is_choice=True,
    )
    right = [ScoredAnswer(question=question, condition="all", answer=a).is_right for a in "AB"]
    assert right == [False, True]
    (score,) = scores_of([ScoredAnswer(question=question, condition="all", answer="(B)")])
    assert (score.right, score.chance) == (1, 0.5)
