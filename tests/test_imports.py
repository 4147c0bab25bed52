"""Imports point one way, and what must start quickly imports no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from itertools import pairwise

import pytest

from tests.reference import ROOT
from tests.sources import (
    LAYERS,
    PACKAGE,
    Source,
    import_circles,
    import_graph,
    imports,
    package_sources,
    room,
)

NEIGHBOURS = {("datasets", "processors")}
"""Rooms of one layer never import one another, apart from these: (who imports, whom)."""

NEEDS_COMPAT = {"timm", "torchaudio", "torchvision", "transformers"}
"""Packages that fail to import beside a CPU torch without `video_llama.common.compat`."""

NEEDS_NO_COMPAT = {"video_llama/text/tokenizer.py"}
"""Files that use only the tokenizers of transformers, which load without torch and torchvision."""

HEAVY = {*NEEDS_COMPAT, "accelerate", "decord", "gradio", "matplotlib", "torch", "webdataset"}
"""Packages that a quick command must not import."""


def layer(name: str) -> int:
    for height, names in enumerate(LAYERS):
        if name in names:
            return height
    pytest.fail(f"video_llama.{name} has no place in the layers of {__file__}: give it one")


def own_imports(source: Source) -> list[tuple[str, int]]:
    """(room, line) of everything that a file imports from other rooms of the package."""
    found = [
        (room(i.target), i.line) for i in imports(source.tree) if i.target.startswith("video_llama")
    ]
    return [(name, line) for name, line in found if name not in ("", room(source.module))]


def may_import(importer: str, imported: str) -> bool:
    if layer(importer) == layer(imported):
        return (importer, imported) in NEIGHBOURS
    return layer(importer) > layer(imported)


def test_imports_point_downwards() -> None:
    # The package itself hands out names of every layer, when they are first used.
    assert [
        f"{source.name}:{line} imports {imported}"
        for source in package_sources()
        if source.module != "video_llama"
        for imported, line in own_imports(source)
        if not may_import(room(source.module), imported)
    ] == []


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("models", "types", True),
        ("models", "text", True),
        ("datasets", "processors", True),
        ("config", "models", True),
        ("apps", "chat", True),
        ("chat", "apps", False),
        ("types", "models", False),
        ("text", "models", False),
        ("models", "datasets", False),
        ("processors", "datasets", False),
        ("runners", "models", False),
        ("models", "config", False),
    ],
)
def test_the_rule_of_directions(importer: str, imported: str, allowed: bool) -> None:
    assert may_import(importer, imported) is allowed


def test_no_module_is_part_of_an_import_circle() -> None:
    # Imports for type checks and inside functions count: they hide a circle and do not mend it.
    circles = import_circles(import_graph())
    assert [" -> ".join(circle) for circle in circles] == []


def test_import_circles_are_found() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"a", "d"}, "d": set[str]()}
    (circle,) = import_circles(graph)
    assert set(circle) == {"a", "b", "c"}
    assert all(imported in graph[importer] for importer, imported in pairwise(circle))
    assert import_circles({"a": {"b"}, "b": set[str]()}) == []


def test_imports_are_absolute_and_name_what_they_take() -> None:
    assert [
        source.at(node)
        for source in package_sources()
        for node in ast.walk(source.tree)
        if isinstance(node, ast.ImportFrom)
        and (node.level or any(alias.name == "*" for alias in node.names))
    ] == []


def test_files_that_need_compat_import_it_first() -> None:
    wrong = []
    for source in package_sources():
        found = [i for i in imports(source.tree) if i.when != "check"]
        needy = [i.line for i in found if i.target.split(".")[0] in NEEDS_COMPAT]
        compat = [
            i.line for i in found if i.target == "video_llama.common.compat" and i.when == "import"
        ]
        if needy and source.name not in NEEDS_NO_COMPAT and not (compat and compat[0] < needy[0]):
            wrong.append(
                f"{source.name}:{needy[0]} comes before `import video_llama.common.compat`"
            )
    assert wrong == []


def quick_modules() -> list[str]:
    settings = [s.module for s in package_sources() if s.path.name in ("settings.py", "base.py")]
    quick = [f"video_llama.{name}" for name in ("types", "common.registry", "common.io")]
    return ["video_llama", *quick, "video_llama.config.load", *settings]


def test_settings_and_configuration_import_no_torch() -> None:
    code = f"import sys, {', '.join(quick_modules())}; print(*sorted({HEAVY!r} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.split() == []


def test_help_of_the_command_imports_no_torch() -> None:
    command = [sys.executable, "-X", "importtime", "-m", "video_llama.apps.cli.main", "--help"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr[-2000:]
    assert "usage" in result.stdout.lower()
    # Lines such as "import time:   321 |    4567 |   torch.nn"
    imported = {line.split("|")[-1].strip().split(".")[0] for line in result.stderr.splitlines()}
    assert "argparse" in imported, "the report of -X importtime was not understood"
    assert imported & HEAVY == set()


def test_unknown_public_name_is_an_attribute_error() -> None:
    import video_llama

    with pytest.raises(AttributeError, match="load_cfg"):
        video_llama.load_cfg  # noqa: B018


def test_public_names_are_listed_before_they_are_used() -> None:
    code = "import video_llama; print(*dir(video_llama))"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert {"load_config", "build_model", "Chat"} <= set(result.stdout.split()), result.stderr


def test_public_names_lead_to_existing_definitions() -> None:
    import video_llama

    for name, module in video_llama._HOMES.items():
        path = (PACKAGE.parent / module.replace(".", "/")).with_suffix(".py")
        body = ast.parse(path.read_text()).body
        defined = {getattr(node, "name", None) for node in body}
        targets = [t for n in body if isinstance(n, ast.Assign) for t in n.targets]
        targets += [n.target for n in body if isinstance(n, ast.AnnAssign)]
        defined |= {ast.unparse(target) for target in targets}
        assert name in defined, f"{module} does not define {name}"
