"""Questions asked under every condition: with which media, in which batches, and which not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from tests.tiny_chat import media_files, tiny_model
from video_llama.apps.evaluate.examine import Examiner, QuestionGroup
from video_llama.apps.evaluate.questions import CONDITIONS, ClipQuestion, Condition


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
        assert sorted(answer.question.item_id for answer in found) == ["0", "1", "2"]
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

    def counted(prompts: Sequence[QuestionGroup]) -> list[str]:
        sizes.append(len(prompts))
        return texts(prompts)

    monkeypatch.setattr(examiner, "_texts", counted)
    blind = list(examiner.ask(questions, clips, "withheld"))
    assert sum(sizes) == 1
    assert [answer.question for answer in blind] == questions
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
    seen: list[QuestionGroup] = []
    monkeypatch.setattr(examiner, "_texts", lambda prompts: seen.extend(prompts) or ["bell"])
    question = ClipQuestion(item_id="1", path=path, question="What?", answer="bell")
    list(examiner.ask([question], {path: clip}, condition))
    assert seen[0].media == [getattr(clip, name) for name in given]


def test_a_question_longer_than_the_context_is_no_answer() -> None:
    path = media_files()["silent"]
    examiner = Examiner(tiny_model())
    texts = ["What?", "what " * 3000]
    questions = [
        ClipQuestion(item_id=str(n), path=path, question=text, answer="x")
        for n, text in enumerate(texts)
    ]
    answers = list(examiner.ask(questions, {path: examiner.read(path)}, "all"))
    short, long = sorted(answers, key=lambda answer: answer.question.item_id)
    assert short.error == ""
    assert "but the model's context holds" in long.error
    assert long.answer == ""
