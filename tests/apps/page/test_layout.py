"""From the values on the page to what the engine is given."""

from __future__ import annotations

import os
from typing import Any

import pytest

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

from video_llama.apps.page.layout import ABOUT, _bubble, _engine_options


@pytest.mark.parametrize(
    ("text", "seed"),
    [("", None), (None, None), (" ", None), ("7", 7), (" 0 ", 0), ("x", "x"), ("-1", "-1")],
)
def test_an_empty_seed_is_none_and_a_bad_one_is_for_the_engine_to_refuse(
    text: str | None, seed: Any
) -> None:
    assert _engine_options(["num_beams", "seed"], [2, text]) == {"num_beams": 2, "seed": seed}


def test_what_was_typed_or_said_is_no_html() -> None:
    hostile = '<img src=x onerror=alert(1)> & "quotes"'
    for message in ({"role": "user"}, {"role": "assistant", "report": "<details></details>"}):
        bubble = _bubble({**message, "content": hostile})
        assert bubble["content"][0] == '&lt;img src=x onerror=alert(1)&gt; &amp; "quotes"'


def test_every_section_about_the_page_has_a_heading() -> None:
    before, *sections = ABOUT.read_text("utf-8").split("## ")
    assert before == ""
    assert [section.splitlines()[0] for section in sections] == [
        "Limits of the model",
        "Terms of use",
        "Citation",
    ]
