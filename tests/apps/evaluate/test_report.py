"""What is written of an evaluation: a picture and a page, for people and safe to open."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

from PIL import Image

from tests.tiny_chat import media_files, tiny_model
from video_llama.apps.evaluate.examine import Examiner
from video_llama.apps.evaluate.questions import ClipQuestion
from video_llama.apps.evaluate.report import choose_samples, draw_scores, write_page
from video_llama.apps.evaluate.scores import Score, ScoredAnswer

NASTY = '<script>alert(1)</script> & $x_$ "it\'s"'


def question(number: int, *, type: str = "kind", clip: str | None = None) -> ClipQuestion:
    return ClipQuestion(
        item_id=str(number),
        path=Path(clip or f"{number}.mp4"),
        question="What?",
        answer="bell",
        type=type,
    )


def answered(asked: ClipQuestion, said: str = "bell", condition: str = "all") -> ScoredAnswer:
    return ScoredAnswer(question=asked, condition=condition, answer=said)


class Page(HTMLParser):
    """Names of the elements of a page and all its text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.values: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.values += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_samples_are_of_every_type_and_of_different_clips() -> None:
    questions = [question(n, type=f"type {n % 4}", clip=f"{n // 2}.mp4") for n in range(40)]
    answers = [answered(q, condition=c) for c in ("all", "withheld") for q in questions]
    chosen = choose_samples(questions, answers, seed=1)
    assert len({sample.question.path for sample in chosen}) == len(chosen) == 10
    assert {sample.question.type for sample in chosen} == {f"type {n}" for n in range(4)}
    assert {sample.condition for sample in chosen} == {"all"}
    assert chosen == choose_samples(questions, answers, seed=1)
    assert chosen != choose_samples(questions, answers, seed=2)


def test_samples_do_not_depend_on_the_answers() -> None:
    questions = [question(n) for n in range(40)]
    wrong, right = (
        choose_samples(questions, [answered(q, said) for q in questions], seed=0)
        for said in ("drum", "bell")
    )
    assert [s.question for s in wrong] == [s.question for s in right]


def test_few_clips_give_few_samples() -> None:
    questions = [question(n, clip="one.mp4") for n in range(5)]
    assert len(choose_samples(questions, [answered(q) for q in questions], seed=0)) == 1


def test_page_shows_frames_sounds_and_answers_and_nothing_of_a_file_is_markup(
    tmp_path: Path,
) -> None:
    clip = media_files()["talkie"]
    item = Examiner(tiny_model()).look(clip)
    asked = ClipQuestion(
        item_id="1", path=Path(NASTY), question=NASTY, answer=NASTY, type=NASTY, contradictory=True
    )
    silent = Examiner(tiny_model()).look(media_files()["silent"])
    samples = [
        (answered(asked, NASTY), item),
        (answered(asked, "no"), silent),
    ]
    scores = [Score(type=NASTY, condition=NASTY, right=1, count=2, chance=0.5)]
    write_page(tmp_path / "page.html", samples, scores, seed=3)
    page = Page((tmp_path / "page.html").read_text("utf-8"))
    assert page.tags.count("script") == 0
    assert page.text.count(NASTY) >= 5
    assert page.tags.count("img") == len(item.frame_seconds) * 2 + len(item.sound_spans)
    assert all(value.startswith("data:image/") for value in page.values)
    assert "✓ right" in page.text
    assert "✗ wrong" in page.text
    assert "no sound track" in page.text


def test_picture_has_a_panel_for_each_condition_and_a_line_for_each_type(tmp_path: Path) -> None:
    scores = [
        Score(type=kind, condition=condition, right=right, count=10, chance=0.5)
        for condition, right in (("all", 10), ("withheld", 0))
        for kind in ("kind", NASTY)
    ]
    figure = draw_scores(scores)
    figure.savefig(tmp_path / "picture.png")
    first, second = figure.axes
    assert [label.get_text() for label in first.get_yticklabels()] == ["kind (10)", f"{NASTY} (10)"]
    assert (first.get_title(), second.get_title()) == ("the clip", "no media")
    drawn = [line.get_xdata().tolist() for axes in figure.axes for line in axes.lines[:1]]
    assert drawn == [[100.0, 100.0], [0.0, 0.0]]
    assert Image.open(tmp_path / "picture.png").width > 300
