"""Questions about clips: reading them, pairing them, and asking them under every condition."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from tests.tiny_chat import media_files, tiny_model
from video_llama.apps.evaluate.examine import Examiner, Prompt
from video_llama.apps.evaluate.questions import (
    CONDITIONS,
    ClipQuestion,
    Condition,
    other_clips,
    read_questions,
)
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


def asked(answers: str, *, type: str = "kind", options: str = "abc") -> list[ClipQuestion]:
    """A question for each letter, which is its answer, about a clip of its own."""
    return [
        ClipQuestion(
            item_id=f"{type}{number}",
            path=Path(f"{type}_{number}_{letter}"),
            question="?",
            answer=letter,
            type=type,
            options=tuple(options),
        )
        for number, letter in enumerate(answers)
    ]


def test_both_kinds_of_files_are_read(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", [SCORED, {"video": "b.mp4", "QA": [{"q": "Why?", "a": "x"}]}])
    scored, plain = read_questions(path, Path("media"))
    assert (scored.path, scored.type, scored.chance) == (Path("media/clip.mp4"), "kind", 0.25)
    assert (plain.path, plain.question, plain.answer) == (Path("media/b.mp4"), "Why?", "x")


def test_the_limit_counts_by_type(tmp_path: Path) -> None:
    many = [SCORED | {"id": str(n), "type": kind} for n in range(3) for kind in ("kind", "see")]
    found = read_questions(write(tmp_path / "a.json", many), Path(), limit=2)
    assert sorted(question.type for question in found) == ["kind", "kind", "see", "see"]


@pytest.mark.parametrize(("limit", "kept"), [(1, 1), (2, 2), (3, 3), (5, 3), (6, 6), (7, 6)])
def test_the_limit_takes_whole_rounds_of_answers(tmp_path: Path, limit: int, kept: int) -> None:
    many = [
        SCORED | {"id": str(n), "answer": letter, "options": list("abc")}
        for n, letter in enumerate("abc" * 4)
    ]
    found = read_questions(write(tmp_path / "a.json", many), Path(), limit=limit)
    assert len(found) == kept


@pytest.mark.parametrize("content", [{"a": 1}, [{"question": "?"}], [1], []])
def test_other_files_are_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(ConfigError, match=r"a\.json: "):
        read_questions(write(tmp_path / "a.json", content), Path())


def test_what_another_clip_shows_is_true_exactly_by_chance() -> None:
    questions = asked("abc" * 6)
    others = other_clips(questions)
    shown = Counter((q.answer, other.name[-1]) for q, other in zip(questions, others, strict=True))
    assert set(shown.values()) == {2}, "every pair of an answer and what is shown, equally often"
    assert len(shown) == 9
    assert all(other != q.path for q, other in zip(questions, others, strict=True))


def test_another_clip_is_one_of_which_the_same_is_asked() -> None:
    pairs = [asked(o * n, type="order", options=o) for o, n in (("ab", 1), ("cd", 3), ("fe", 2))]
    questions = [question for group in pairs for question in group]
    others = other_clips(questions)
    for question, other in zip(questions, others, strict=True):
        assert other.name[-1] in question.options
        assert other != question.path


def test_single_rounds_of_several_pairs_make_up_for_each_other() -> None:
    groups = [asked(p * 3, type="order", options=p) for p in ("ab", "cd", "ef", "gh")]
    questions = [question for group in groups for question in group]
    others = other_clips(questions)
    same = sum(q.answer == o.name[-1] for q, o in zip(questions, others, strict=True))
    assert same == len(questions) / 2


def test_where_all_answers_are_the_same_the_other_clip_is_far_away() -> None:
    questions = asked("aaaa")
    assert other_clips(questions) == [questions[n].path for n in (2, 3, 0, 1)]
    assert other_clips(questions[:1]) == [questions[0].path]


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


def test_the_same_prompt_is_answered_once_and_counted_for_every_question(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    talkie, silent = media_files()["talkie"], media_files()["silent"]
    questions = [
        ClipQuestion(item_id=str(n), path=path, question="What?", answer=answer)
        for n, (path, answer) in enumerate([(talkie, "a"), (silent, "b"), (silent, "b")])
    ]
    examiner = Examiner(tiny_model())
    clips = {path: examiner.read(path) for path in (talkie, silent)}
    sizes = []
    texts = examiner._texts

    def counted(prompts: Sequence[Prompt]) -> list[str]:
        sizes.append(len(prompts))
        return texts(prompts)

    monkeypatch.setattr(examiner, "_texts", counted)
    blind = list(examiner.ask(questions, clips, "withheld"))
    assert sum(sizes) == 1
    assert [(a.item_id, a.reference) for a in blind] == [("0", "a"), ("1", "b"), ("2", "b")]
    assert len({answer.answer for answer in blind}) == 1
    sizes.clear()
    assert len(list(examiner.ask(questions, clips, "all"))) == 3
    assert sum(sizes) == 2


@pytest.mark.parametrize(
    ("condition", "given"),
    [
        ("all", ["sound", "picture"]),
        ("other", ["sound", "picture"]),
        ("withheld", []),
        ("picture", ["picture"]),
        ("sound", ["sound"]),
        ("shuffled", ["shuffled"]),
    ],
)
def test_every_condition_gives_what_it_says(
    monkeypatch: pytest.MonkeyPatch, condition: Condition, given: list[str]
) -> None:
    path = media_files()["talkie"]
    examiner = Examiner(tiny_model())
    clip = examiner.read(path)
    assert clip.sound is not None
    assert not torch.equal(clip.picture.tokens, clip.shuffled.tokens)
    seen: list[Prompt] = []
    monkeypatch.setattr(examiner, "_texts", lambda prompts: seen.extend(prompts) or ["bell"])
    question = ClipQuestion(item_id="1", path=path, question="What?", answer="bell")
    list(examiner.ask([question], {path: clip}, condition))
    assert seen[0].parts == [getattr(clip, name) for name in given]
