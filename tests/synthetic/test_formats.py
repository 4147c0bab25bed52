"""Questions and conversations about scenes are balanced, and none gives an answer away."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from video_llama.apps.evaluate.questions import read_questions
from video_llama.synthetic.formats import balanced, conversations, without_rivals
from video_llama.synthetic.language import questions
from video_llama.synthetic.media import World
from video_llama.synthetic.write import annotation_files, plan

QUESTIONS = "test/questions.json"
SMALL = World(seed=4, size=32, fps=4.0)


def scored(num_clips: int) -> list[dict[str, Any]]:
    items = plan(num_clips, SMALL, splits=("test",))
    found: list[dict[str, Any]] = json.loads(annotation_files(items)[QUESTIONS])
    return found


def test_answers_of_scored_questions_are_balanced() -> None:
    asked = scored(400)
    counts: dict[tuple[str, bool], Counter[str]] = defaultdict(Counter)
    for question in asked:
        counts[question["type"], question["contradictory"]][question["answer"]] += 1
    for (kind, contradictory), found in counts.items():
        if "order" in kind:
            continue
        assert len(set(found.values())) == 1, (kind, found)
        options = 1 if kind.endswith("nothing") else None
        assert len(found) == (options or len(asked_options(asked, kind)))
        assert not contradictory or kind in ("see", "hear")
    assert ("see", True) in counts
    assert ("hear", True) in counts


def test_whatever_is_answered_without_the_clip_is_right_exactly_by_chance() -> None:
    right: dict[tuple[str, bool, str], Counter[str]] = defaultdict(Counter)
    for question in scored(400):
        key = (question["type"], question["contradictory"], question["question"])
        right[key][question["answer"]] += 1
    for (kind, _, text), found in right.items():
        assert len(set(found.values())) == 1, (text, found)
        assert len(found) == {"order": 2, "sound_order": 2}.get(kind, len(found))
    texts = {text for kind, _, text in right if kind == "order"}
    assert any(text.endswith("the bell or the drum?") for text in texts)
    assert any(text.endswith("the drum or the bell?") for text in texts)


def test_the_first_rounds_of_scored_questions_are_balanced_too(tmp_path: Path) -> None:
    path = tmp_path / "questions.json"
    path.write_text(json.dumps(scored(400)))
    found: dict[tuple[str, bool], Counter[str]] = defaultdict(Counter)
    for question in read_questions(path, tmp_path, limit=20):
        found[question.type, question.contradictory][question.answer] += 1
    assert found["kind", False] == dict.fromkeys(found["kind", False], 3)
    assert found["motion", False] == dict.fromkeys(found["motion", False], 2)
    assert found["count", False] == {"one": 10, "two": 10}


def asked_options(asked: list[dict[str, Any]], kind: str) -> set[str]:
    found = (question["options"] for question in asked if question["type"] == kind)
    return {option for options in found for option in options}


def test_conversations_give_no_answer_away() -> None:
    asked = [
        (item, question)
        for item in plan(60, SMALL)["train", "clips"]
        for question in questions(item.scene, item.rng("test"))
    ]
    found = conversations(balanced(without_rivals(asked)))
    for _, turns in found:
        types = {turn.type for turn in turns}
        assert not types >= {"kind", "see"}
        assert not types >= {"empty", "see_nothing"}
        assert len(types) == len(turns)
    firsts = Counter(turns[0].type for _, turns in found)
    assert len(firsts) > 5
