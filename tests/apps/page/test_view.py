"""What the page shows of a conversation: facts in one line, foreign text as text."""

from __future__ import annotations

import pytest

from video_llama.apps.page.view import (
    MAX_PROMPT_SHOWN,
    NOTHING_SEEN,
    WRITING,
    note_html,
    open_turn,
    report_details,
    report_html,
    report_line,
    seen_html,
)
from video_llama.chat.answer import AnswerReport

TIMINGS = {"first_token": 0.25, "generate": 2.0, "wait": 0.5}


def report(**changes: object) -> AnswerReport:
    values = {"num_tokens": 40, "num_prompt_tokens": 1, "timings": TIMINGS, "finished": True}
    made = AnswerReport()
    for name, value in (values | changes).items():
        setattr(made, name, value)
    return made


def test_a_report_is_one_line() -> None:
    assert report_line(report()) == (
        "first word after 0.25 s · 2.00 s for 40 tokens · 22 per second · "
        "waited 0.50 s for others · prompt of 1 token"
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"num_tokens": 0, "timings": {}}, "0.00 s for 0 tokens · prompt of 1 token"),
        ({"num_reused_tokens": 7}, "prompt of 1 token, 7 kept from before"),
        ({"finished": False}, "cut at the longest length"),
        ({"finished": False, "stopped": True}, "· stopped"),
    ],
)
def test_a_report_says_how_an_answer_ended(changes: dict[str, object], said: str) -> None:
    assert report_line(report(**changes)).endswith(said)


def test_a_report_opens_to_notices_and_prompt() -> None:
    html = report_html(report(prompt="<Video>\x00" + "x" * 9999, notices=["a < b"]))
    assert "<li>a &lt; b</li>" in html
    assert "&lt;Video&gt;" in html
    assert "\x00" not in html
    assert html.count("x") < MAX_PROMPT_SHOWN + 100


def test_programs_get_the_whole_report() -> None:
    details = report_details(report(prompt="x" * 9999))
    assert len(details["prompt"]) == 9999
    assert details["seconds"] == TIMINGS


def test_notes_are_read_out_and_hold_no_html() -> None:
    assert note_html("") == ""
    assert 'role="status"' in note_html("done")
    error = note_html('<img src="x">', "error")
    assert 'role="alert"' in error
    assert "<img" not in error


def test_what_is_not_there_yet_has_a_word_for_it() -> None:
    assert NOTHING_SEEN in seen_html([])
    assert [bubble["content"] for bubble in open_turn("What?", [], "")] == ["What?", WRITING]
