"""Questions about clips: reading them, and asking them under every condition."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.tiny_chat import media_files, tiny_model
from video_llama.evaluate import CONDITIONS, ClipQuestion, Examiner, read_questions
from video_llama.types import ConfigError

SCORED = {
    "id": "clip_kind",
    "path": "clip.mp4",
    "question": "What thing is it?",
    "answer": "bell",
    "type": "kind",
    "chance": 0.25,
    "opposite": None,
    "contradictory": False,
}


def write(path: Path, content: object) -> Path:
    path.write_text(json.dumps(content))
    return path


def test_both_kinds_of_files_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [SCORED, {"video": "b.mp4", "QA": [{"q": "Why?", "a": "x"}]}])
    scored, plain = read_questions(path, Path("media"))
    assert (scored.path, scored.type, scored.chance) == (Path("media/clip.mp4"), "kind", 0.25)
    assert (plain.path, plain.question, plain.answer) == (Path("media/b.mp4"), "Why?", "x")


def test_the_limit_counts_by_type(tmp_path: Path) -> None:
    many = [SCORED | {"id": str(n), "type": kind} for n in range(3) for kind in ("kind", "see")]
    found = read_questions(write(tmp_path / "a.json", many), Path(), limit=2)
    assert sorted(question.type for question in found) == ["kind", "kind", "see", "see"]


@pytest.mark.parametrize("content", [{"a": 1}, [{"question": "?"}], [1], []])
def test_other_files_are_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(ConfigError, match=r"a\.json: "):
        read_questions(write(tmp_path / "a.json", content), Path())


def test_every_question_gets_an_answer_under_every_condition() -> None:
    clip = media_files()["talkie"]
    questions = [
        ClipQuestion(item_id=str(n), path=clip, question=text, answer="bell")
        for n, text in enumerate(("What?", "What do you hear?", "Which?"))
    ]
    examiner = Examiner(tiny_model(), batch_size=2)
    clips = {clip: examiner.read(clip)}
    assert clips[clip].sound is not None
    for condition in CONDITIONS:
        found = list(examiner.ask(questions, clips, condition))
        assert sorted(answer.item_id for answer in found) == ["0", "1", "2"]
        assert {answer.condition for answer in found} == {condition}
