"""Scores of answers: shares, intervals and the table."""

from __future__ import annotations

from typing import Any

import pytest

from video_llama.tasks.scoring import ScoredAnswer, score_table, scores_of, wilson_interval


def answer(said: str, reference: str = "left", **changes: Any) -> ScoredAnswer:
    values: dict[str, Any] = {
        "item_id": "1",
        "type": "motion",
        "condition": "all",
        "question": "How does it move?",
        "chance": 1 / 7,
        "opposite": "right",
    }
    return ScoredAnswer(**values | changes, answer=said, reference=reference)


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
        ("see", "all"): (1, 1),
        ("motion", "withheld"): (0, 1),
        ("see, contradictory", "all"): (0, 1),
    }


def test_direction_counts_only_answers_that_name_one() -> None:
    found = {s.type: s for s in scores_of([answer("left"), answer("right"), answer("growing")])}
    assert (found["motion"].right, found["motion"].count) == (1, 3)
    assert (found["direction"].right, found["direction"].count) == (1, 2)
    assert found["direction"].chance == 0.5


def test_the_table_has_a_line_for_each_type_and_a_column_for_each_condition() -> None:
    table = score_table(scores_of([answer("left"), answer("up", condition="withheld")]))
    head, motion, direction = table.splitlines()
    assert head.split() == ["question", "chance", "all", "withheld"]
    assert motion.split()[:3] == ["motion", "14", "100"]
    assert direction.split()[-1] == "-", "nothing was said that names a direction"
