"""The pages that explain the house name what exists, and its picture shows the imports."""

from __future__ import annotations

import ast
import re

import pytest

from studies.rooms_picture import PICTURE, draw
from tests.reference import ROOT
from tests.sources import parse

PAGES = ["docs/architecture.md", "CONTRIBUTING.md"]
PATH = re.compile(r"(?:[\w.<>-]+/)*[\w<>-]+\.(?:py|md|yaml|yml|toml|json|svg|png|txt)\b|(?:[\w-]+/)+")
FROM_PACKAGE = re.compile(r"^(?:apps|chat|common|config|datasets|models|processors|runners|text)/")


def named_paths(page: str) -> list[str]:
    """Return the paths between backticks and in code blocks of a page, without placeholders."""
    text = (ROOT / page).read_text("utf-8")
    code = re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)
    found = [path for part in code for path in PATH.findall(part)]
    return sorted({path for path in found if "<" not in path and ">" not in path})


@pytest.mark.parametrize("page", PAGES)
def test_paths_that_a_page_names_exist(page: str) -> None:
    paths = named_paths(page)
    assert len(paths) > 10
    folders = [ROOT, (ROOT / page).parent, ROOT / "video_llama"]
    assert [path for path in paths if not any((folder / path).exists() for folder in folders)] == []


def test_the_picture_shows_the_imports() -> None:
    assert PICTURE.read_text("utf-8") == draw(), "python -m studies.rooms_picture draws it anew"
