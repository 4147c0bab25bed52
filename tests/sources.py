"""Reading the package's source files without importing them, for the tests of style and imports.

`python -m tests.sources` prints the import circles of the package.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import Literal

from tests.reference import ROOT

PACKAGE = ROOT / "video_llama"
LAYERS = [
    {"types"},
    {"common"},
    {"text"},
    {"models", "processors", "datasets", "runners"},
    {"config"},
    {"chat"},
    {"synthetic"},
    {"apps"},
    {"quickstart"},  # synthetic/quickstart runs the programs of apps, which use the world
]
"""The rooms from the bottom up: a module imports from its own room or a lower one."""

When = Literal["import", "call", "check"]


@dataclass(frozen=True)
class Source:
    """One file: where it is, the module it defines and its syntax tree."""

    path: Path
    module: str
    tree: ast.Module

    @property
    def name(self) -> str:
        return str(self.path.relative_to(ROOT))

    def at(self, node: ast.stmt | ast.expr | ast.excepthandler) -> str:
        """Where a node stands, as editors understand it: `file.py:12`."""
        return f"{self.name}:{node.lineno}"


@dataclass(frozen=True)
class Import:
    """One imported module.

    Attributes:
        target: dotted name, such as `video_llama.models.qformer` or `torch`.
        line: where it stands.
        when: "import" of the file, "call" of a function in it, or "check" of its types only.
    """

    target: str
    line: int
    when: When


def parse(path: Path) -> Source:
    parts = path.relative_to(ROOT).with_suffix("").parts
    module = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    return Source(path, module, ast.parse(path.read_text("utf-8"), filename=str(path)))


@cache
def package_sources() -> tuple[Source, ...]:
    return tuple(parse(path) for path in sorted(PACKAGE.rglob("*.py")))


@cache
def package_modules() -> frozenset[str]:
    return frozenset(source.module for source in package_sources())


def imports(tree: ast.Module) -> Iterator[Import]:
    """All imports of a file; the package has absolute ones only (a test demands it)."""
    yield from _imports(tree.body, "import")


def _imports(nodes: Iterable[ast.AST], when: When) -> Iterator[Import]:
    for node in nodes:
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, when)
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                yield Import(_imported_module(node, alias.name), node.lineno, when)
        elif isinstance(node, ast.If) and ast.unparse(node.test).endswith("TYPE_CHECKING"):
            yield from _imports(node.body, "check")
            yield from _imports(node.orelse, when)
        else:
            called = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            inner: When = "call" if called and when == "import" else when
            yield from _imports(ast.iter_child_nodes(node), inner)


def _imported_module(node: ast.ImportFrom, name: str) -> str:
    """`from package import module` means the module; `from module import thing` means `module`."""
    base = "." * node.level + (node.module or "")
    full = f"{base}.{name}"
    return full if full in package_modules() else base


def import_graph(*kinds: When) -> dict[str, set[str]]:
    """What each module imports of the package: {importer: imported}.

    Without `video_llama/__init__`, which hands out names of every layer when they are first used.

    Args:
        kinds: which imports count; all of them if none is named.
    """
    return {
        source.module: {
            i.target
            for i in imports(source.tree)
            if (not kinds or i.when in kinds) and i.target in package_modules()
        }
        - {source.module, "video_llama"}
        for source in package_sources()
        if source.module != "video_llama"
    }


def room(module: str) -> str:
    """Return `models` for `video_llama.models.qformer`; empty for `video_llama` itself."""
    if module.startswith("video_llama.synthetic.quickstart"):
        return "quickstart"
    return module.removeprefix("video_llama").lstrip(".").split(".")[0]


def import_circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """One circle after the other; each is named by an edge that the next search leaves out."""
    graph = {module: set(imported) for module, imported in graph.items()}
    circles = []
    while True:
        try:
            TopologicalSorter(graph).prepare()
        except CycleError as error:
            # The sorter names what is imported first: reversed, each module imports the next one.
            circle = error.args[1][::-1]
            circles.append(circle)
            graph[circle[0]].discard(circle[1])
        else:
            return circles


if __name__ == "__main__":
    for circle in import_circles(import_graph()):
        print(" -> ".join(circle))
