"""Questions of files as people have them: reading them, and whose clip to show instead."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.data_sets import write_json
from video_llama.apps.evaluate.questions import (
    ClipQuestion,
    chosen_option,
    other_clips,
    read_questions,
)
from video_llama.datasets.base import SplitInfo
from video_llama.datasets.webvid_instruct import WebvidInstructSettings
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
    path = write_json(
        tmp_path / "a.json", [SCORED, {"video": "b.mp4", "QA": [{"q": "Why?", "a": "x"}]}]
    )
    scored, plain = read_questions(path, Path("media"))
    assert (scored.path, scored.type, scored.chance) == (Path("media/clip.mp4"), "kind", 0.25)
    assert (plain.path, plain.question, plain.answer) == (Path("media/b.mp4"), "Why?", "x")


def test_the_limit_counts_by_type(tmp_path: Path) -> None:
    many = [SCORED | {"id": str(n), "type": kind} for n in range(3) for kind in ("kind", "see")]
    found = read_questions(write_json(tmp_path / "a.json", many), Path(), limit=2)
    assert sorted(question.type for question in found) == ["kind", "kind", "see", "see"]


@pytest.mark.parametrize(("limit", "kept"), [(1, 1), (2, 2), (3, 3), (5, 3), (6, 6), (7, 6)])
def test_the_limit_takes_whole_rounds_of_answers(tmp_path: Path, limit: int, kept: int) -> None:
    many = [
        SCORED | {"id": str(n), "answer": letter, "options": list("abc")}
        for n, letter in enumerate("abc" * 4)
    ]
    found = read_questions(write_json(tmp_path / "a.json", many), Path(), limit=limit)
    assert len(found) == kept


@pytest.mark.parametrize("content", [{"a": 1}, [{"question": "?"}], [1], []])
def test_other_files_are_refused(tmp_path: Path, content: object) -> None:
    with pytest.raises(ConfigError, match=r"a\.json: "):
        read_questions(write_json(tmp_path / "a.json", content), Path())


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


def pair(answer: Any, question: Any = "How many?", **more: Any) -> dict[str, Any]:
    return {"video": "a.mp4", "QA": [{"q": question, "a": answer, **more}]}


@pytest.mark.parametrize(
    ("value", "text"),
    [(2, "2"), (2.0, "2"), (2.5, "2.5"), (-1, "-1"), ("2", "2"), (10**30, "1" + "0" * 30)],
)
def test_a_number_is_an_answer(tmp_path: Path, value: Any, text: str) -> None:
    scored = SCORED | {"answer": value, "opposite": 3}
    questions = read_questions(write_json(tmp_path / "a.json", [pair(value), scored]), Path())
    assert [question.answer for question in questions] == [text, text]
    assert [question.error for question in questions] == ["", ""]
    assert questions[1].opposite == "3"


@pytest.mark.parametrize("value", [True, False, None, ["a"], {"a": 1}])
def test_what_is_no_answer_spoils_its_question_only(tmp_path: Path, value: Any) -> None:
    entries = [pair(value), pair("x", value), SCORED | {"answer": value}, pair("x")]
    questions = read_questions(write_json(tmp_path / "a.json", entries), Path())
    given = json.dumps(value)
    assert [question.error for question in questions] == [
        f"a: {given} given, a text or a number expected",
        f"q: {given} given, a text or a number expected",
        f"answer: {given} given, a text or a number expected",
        "",
    ]


def test_null_is_no_file(tmp_path: Path) -> None:
    entry = pair("x") | {"video": None}
    (question,) = read_questions(write_json(tmp_path / "a.json", [entry]), Path())
    assert "video: null given" in question.error


def test_pairs_of_one_clip_in_several_entries_have_ids_of_their_own(tmp_path: Path) -> None:
    questions = read_questions(write_json(tmp_path / "a.json", [pair("x"), pair("y")]), Path())
    assert [question.item_id for question in questions] == ["a.mp4/0", "a.mp4/1"]


@pytest.mark.parametrize("instruction", ["Answer with a letter.", "", None])
@pytest.mark.parametrize("question", ["Which? A or B", ""])
def test_the_instruction_leads_the_question_as_in_training(
    tmp_path: Path, instruction: str | None, question: str
) -> None:
    path = write_json(tmp_path / "a.json", [pair("A", question, i=instruction)])
    (found,) = read_questions(path, tmp_path)
    info = SplitInfo(anno_dir=str(path), videos_dir=str(tmp_path))
    records = WebvidInstructSettings.read(None, info)  # type: ignore[arg-type]
    assert records[0].turns == ((found.question, found.answer),)
    assert found.question == " ".join(filter(None, [instruction, question]))


@pytest.mark.parametrize("text", ["half \\ud83d?", "\\ude00", "\\udcff \\ud800\\ud800"])
def test_half_an_emoji_becomes_a_replacement_character(tmp_path: Path, text: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([pair("X", "Y")]).replace("X", text).replace("Y", text))
    (question,) = read_questions(path, Path())
    question.question.encode()
    question.answer.encode()
    assert "\ufffd" in question.question


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-8"])
def test_a_byte_order_mark_is_no_error(tmp_path: Path, encoding: str) -> None:
    path = tmp_path / "a.json"
    path.write_text(json.dumps([pair("é")], ensure_ascii=False), encoding)
    assert read_questions(path, Path())[0].answer == "é"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[\n1,\n'é']".encode("cp1252"), "3: not JSON in UTF-8.*save it as UTF-8"),
        ('[\n"这是什么"]'.encode("gbk"), "2: not JSON in UTF-8.*looks like GBK"),
        ("[]".encode("utf-16"), "1: not JSON in UTF-8: it is UTF-16"),
        (b'[{"video": "a.mp4"', "1: not JSON"),
        (b"[" * 100_000, " nested too deep"),
        (b'[{"video": "a.mp4", "QA": [{"q": "?"}]}]', "entry 0, QA 0 has no 'a'"),
        (b'[{"QA": [{"q": "?", "a": "x"}]}]', "entry 0 has no 'video'"),
        (b'[{"video": "a.mp4", "QA": {"q": "?"}}]', "entry 0: QA is no list"),
        (b"[5]", "entry 0: 5 given"),
        (None, "cannot be read: No such file"),
    ],
)
def test_what_is_no_list_of_questions_is_refused_with_its_place(
    tmp_path: Path, content: bytes | None, message: str
) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigError, match=rf"a\.json:.*{message}") as raised:
        read_questions(path, Path())
    assert "Error(" not in str(raised.value)


CHOICES = ["a bell", "a drum", "nothing at all"]


def choice_file(tmp_path: Path, **changes: Any) -> Path:
    entry = {
        "video": "a.mp4",
        "question": "What sounds?",
        "candidates": CHOICES,
        "answer": "a drum",
        **changes,
    }
    return write_json(tmp_path / "choices.json", [entry, entry])


def test_options_stand_in_the_question_with_letters(tmp_path: Path) -> None:
    first, second = read_questions(choice_file(tmp_path, task_type="sound"), tmp_path)
    assert first.question == (
        "What sounds?\n(A) a bell\n(B) a drum\n(C) nothing at all\n"
        "Answer with the letter of the right option."
    )
    assert (first.answer, first.type, first.options) == ("a drum", "sound", tuple(CHOICES))
    assert first.chance == pytest.approx(1 / 3)
    assert first.item_id != second.item_id


@pytest.mark.parametrize(
    "changes",
    [{"candidates": "a"}, {"candidates": ["a drum"]}, {"answer": "B"}, {"answer": "a whistle"}],
)
def test_choices_that_cannot_be_scored_are_refused(changes: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="candidates"):
        read_questions(choice_file(tmp_path, **changes), tmp_path)


@pytest.mark.parametrize(
    ("answer", "chosen"),
    [
        ("B", "a drum"),
        ("b", "a drum"),
        (" B.", "a drum"),
        ("(B)", "a drum"),
        ("(b) a drum", "a drum"),
        ("B) a bell", "a drum"),  # the letter counts
        ("Answer: B", "a drum"),
        ("The answer is (B).", "a drum"),
        ("the correct option is B", "a drum"),
        ("A drum.", "a drum"),
        ("It is a drum, I think.", "a drum"),
        ("A bell rings", "a bell"),  # not the letter A
        ("Nothing at all", "nothing at all"),
        ("a bell and a drum", None),
        ("D", None),
        ("", None),
        ("drums", None),
    ],
)
def test_an_option_is_chosen_by_letter_or_text(answer: str, chosen: str | None) -> None:
    assert chosen_option(answer, CHOICES) == chosen
