"""The badges of the README say what is so."""

from __future__ import annotations

import re

from studies import badges
from tests.reference import ROOT


def test_badges_are_those_of_the_project() -> None:
    # Else run `python -m studies.badges`.
    drawn = badges.badges()
    committed = {path.name: path.read_text("utf-8") for path in badges.FOLDER.glob("*.svg")}
    assert committed.keys() == drawn.keys()
    for name in ("licence.svg", "python.svg"):
        assert committed[name] == drawn[name]


def test_the_number_of_tests_is_no_larger_than_it_is() -> None:
    shown = re.search(r": ([\d,]+)\+", (badges.FOLDER / "tests.svg").read_text("utf-8"))
    assert shown
    number = int(shown[1].replace(",", ""))
    assert number <= badges.num_tests() < number + 300


def test_every_badge_is_shown() -> None:
    readme = (ROOT / "README.md").read_text("utf-8")
    assert [n for n in badges.badges() if f"docs/badges/{n}" not in readme] == []
