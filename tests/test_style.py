"""The package's rules of size and form that ruff does not know."""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Iterator
from itertools import chain
from statistics import median

from tests.sources import package_sources

MAX_FILE_LINES = 500
MAX_FUNCTION_LINES = 60
MAX_MEDIAN_FUNCTION_LINES = 12

VAGUE_WORDS = {
    *("shelf", "pace", "ahead", "watch", "shrink", "modes"),
    *("eyes", "told", "asked", "heard"),
}
"""Not in names: the field has terms for what they stood for."""

NAMES_OF_ONE_THING = {"Item", "Kind", "Plan", "Prompt", "Sample", "World", "Guard", "Recipe"}

Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(tree: ast.AST) -> Iterator[Function]:
    return (node for node in ast.walk(tree) if isinstance(node, Function))


def num_lines(function: Function) -> int:
    assert function.end_lineno is not None
    return function.end_lineno - function.lineno + 1


def public_definitions(body: list[ast.stmt]) -> Iterator[Function | ast.ClassDef]:
    """Public functions and classes of a module, and the public methods of those classes."""
    for node in body:
        if isinstance(node, Function | ast.ClassDef) and not node.name.startswith("_"):
            yield node
            if isinstance(node, ast.ClassDef):
                yield from public_definitions(node.body)


def is_documented_elsewhere(node: Function | ast.ClassDef) -> bool:
    """Whether a decorator says that another definition carries the docstring."""
    names = {ast.unparse(decorator).split(".")[-1] for decorator in node.decorator_list}
    return bool(names & {"overload", "override", "setter"})


def swallows(handler: ast.ExceptHandler) -> list[str]:
    """The names of what a handler catches and does not raise again."""
    last = handler.body[-1]
    if isinstance(last, ast.Raise) and last.exc is None:
        return []
    if handler.type is None:
        return ["everything"]
    several = handler.type.elts if isinstance(handler.type, ast.Tuple) else [handler.type]
    return [ast.unparse(name) for name in several]


def test_files_can_be_read_in_one_sitting() -> None:
    lengths = {s.name: len(s.path.read_text("utf-8").splitlines()) for s in package_sources()}
    assert {name: n for name, n in lengths.items() if n > MAX_FILE_LINES} == {}


def test_functions_fit_on_a_screen() -> None:
    assert [
        f"{source.at(f)} {f.name}: {num_lines(f)} lines"
        for source in package_sources()
        for f in functions(source.tree)
        if num_lines(f) > MAX_FUNCTION_LINES
    ] == []


def test_half_of_the_functions_are_short() -> None:
    lengths = [num_lines(f) for source in package_sources() for f in functions(source.tree)]
    assert median(lengths) <= MAX_MEDIAN_FUNCTION_LINES


def test_public_definitions_are_documented() -> None:
    assert [
        f"{source.at(node)} {node.name}"
        for source in package_sources()
        for node in public_definitions(source.tree.body)
        if not ast.get_docstring(node) and not is_documented_elsewhere(node)
    ] == []


def test_no_handler_swallows_everything() -> None:
    assert [
        f"{source.at(node)} swallows {caught}"
        for source in package_sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ExceptHandler)
        for caught in swallows(node)
        if caught in ("everything", "Exception", "BaseException")
    ] == []


def test_the_library_does_not_print() -> None:
    assert [
        source.at(node)
        for source in package_sources()
        if not source.module.startswith("video_llama.apps.cli")  # the terminal is what it is for
        for node in ast.walk(source.tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "print"
    ] == []


def test_names_use_the_terms_of_the_field() -> None:
    assert [
        f"{source.at(node)} {node.name}"
        for source in package_sources()
        for node in ast.walk(source.tree)
        if isinstance(node, Function | ast.ClassDef)
        and VAGUE_WORDS & set(re.findall("[a-z]+", re.sub("([A-Z])", r"_\1", node.name).lower()))
    ] == []


def test_a_name_has_one_meaning() -> None:
    bodies = chain.from_iterable(source.tree.body for source in package_sources())
    counts = Counter(node.name for node in bodies if isinstance(node, ast.ClassDef))
    assert {name: counts[name] for name in NAMES_OF_ONE_THING if counts[name] > 1} == {}
