"""The pages that explain the house name what exists, and its picture shows the imports."""

from __future__ import annotations

import re

import pytest

from studies.rooms_picture import PICTURE, draw
from tests.reference import ROOT
from tests.sources import import_graph, imports, package_modules, parse
from video_llama.datasets.base import DatasetSettings
from video_llama.processors import settings as processor_settings

ARCHITECTURE, GUIDE = "docs/architecture.md", "CONTRIBUTING.md"
PATH = re.compile(
    r"(?:[\w.<>-]+/)*[\w<>-]+\.(?:py|md|ya?ml|toml|json|svg|png|txt)\b|(?<![\w/.])(?:[\w-]+/)+"
)
MAX_WALK = 20


def named_paths(page: str) -> list[str]:
    """Return the paths between backticks and in code blocks of a page, without placeholders."""
    text = (ROOT / page).read_text("utf-8")
    code = re.findall(r"```.*?```|`[^`\n]+`", text, re.DOTALL)
    found = [path for part in code for path in PATH.findall(part)]
    return sorted({path for path in found if "<" not in path and path != "X.yaml"})


@pytest.mark.parametrize("page", [ARCHITECTURE, GUIDE])
def test_paths_that_a_page_names_exist(page: str) -> None:
    paths = named_paths(page)
    assert len(paths) > 10
    folders = [ROOT, ROOT / "video_llama", ROOT / "video_llama/datasets", ROOT / "video_llama/apps"]
    folders += [ROOT / f"video_llama/{room}" for room in ("models", "synthetic")]
    assert [path for path in paths if not any((folder / path).exists() for folder in folders)] == []


def walks() -> list[list[str]]:
    """Return the numbered files of the two walks."""
    parts = (ROOT / ARCHITECTURE).read_text("utf-8").split("\n## ")
    found = [re.findall(r"^\d+\. `([^`]+)`", part, re.MULTILINE) for part in parts]
    return [walk for walk in found if walk]


def reached_from(path: str) -> set[str]:
    """Return every module of the package that the imports of a file lead to."""
    known, graph = package_modules(), import_graph()
    found: set[str] = set()
    waiting = [i.target for i in imports(parse(ROOT / path).tree)]
    while waiting:
        module = waiting.pop()
        if module in known and module not in found:
            found.add(module)
            waiting += [*graph.get(module, ()), module.rpartition(".")[0]]
    return found


@pytest.mark.parametrize(
    ("walk", "start"),
    list(zip(walks(), ["train.py", "video_llama/apps/cli/ask.py"], strict=True)),
    ids=["train", "ask"],
)
def test_a_walk_is_short_and_follows_the_imports(walk: list[str], start: str) -> None:
    assert 10 < len(set(walk)) == len(walk) <= MAX_WALK
    place = next(i for i, path in enumerate(walk) if start.endswith(path))
    rest = [f"video_llama.{p.removesuffix('.py').replace('/', '.')}" for p in walk[place + 1 :]]
    assert [module for module in rest if module not in reached_from(start)] == []


def test_the_guide_names_methods_that_exist() -> None:
    steps = re.split(r"\n(?=\d\. |#)", (ROOT / GUIDE).read_text("utf-8"))
    named = {
        cls: method
        for step in steps
        for method in re.findall(r"method `(\w+)`", step)
        for cls in re.findall(r"`([A-Z]\w+Settings)`", step)
    }
    assert named["DatasetSettings"] == "read"
    assert named["CaptionSettings"] == "build"
    for name, method in named.items():
        owner = getattr(processor_settings, name, None) or DatasetSettings
        kinds = [owner, *owner.__subclasses__()]
        assert any(callable(getattr(kind, method, None)) for kind in kinds), f"{name}.{method}"


def test_the_picture_shows_the_imports() -> None:
    assert PICTURE.read_text("utf-8") == draw(), "python -m studies.rooms_picture draws it anew"
