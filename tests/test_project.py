"""The files that describe the project agree, and a wheel carries everything that it needs."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import zipfile
from importlib.metadata import packages_distributions
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.reference import ROOT
from tests.sources import imports, package_sources

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SHIPPED = ("train_configs", "eval_configs", "prompts")
"""Top-level folders that a wheel carries under `video_llama/_data`."""


@pytest.fixture(scope="module")
def project() -> dict[str, Any]:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]


@pytest.fixture(scope="module")
def environment() -> dict[str, Any]:
    return yaml.safe_load((ROOT / "environment.yml").read_text("utf-8"))


def constraints() -> list[Requirement]:
    text = "\n".join(path.read_text("utf-8") for path in ROOT.glob("constraints/*.txt"))
    return [Requirement(line) for line in text.splitlines() if line and not line.startswith("#")]


def test_environment_installs_the_dependencies_of_pyproject(
    project: dict[str, Any], environment: dict[str, Any]
) -> None:
    pip = next(entry["pip"] for entry in environment["dependencies"] if isinstance(entry, dict))
    *requirements, checkout = pip
    assert sorted(requirements) == sorted(project["dependencies"])
    assert checkout == "--editable ."


def test_environment_asks_for_the_same_python(
    project: dict[str, Any], environment: dict[str, Any]
) -> None:
    assert f"python{project['requires-python']}" in environment["dependencies"]


def test_constraints_lie_within_the_bounds_of_pyproject(project: dict[str, Any]) -> None:
    bounds = {r.name: r.specifier for r in map(Requirement, project["dependencies"])}
    pinned = constraints()
    assert pinned
    for constraint in pinned:
        (pin,) = constraint.specifier
        assert pin.operator == "=="
        assert Version(pin.version) in bounds[constraint.name], f"{constraint} is out of bounds"


def test_cpu_constraint_cannot_be_met_by_a_cuda_build() -> None:
    (torch,) = (c for c in constraints() if c.name == "torch")
    (pin,) = torch.specifier
    release, build = pin.version.split("+")
    assert build == "cpu"
    assert torch.specifier.contains(f"{release}+cpu")
    assert not torch.specifier.contains(release)
    assert not torch.specifier.contains(f"{release}+cu130")


def test_every_imported_package_is_a_dependency(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    optional = [*extras["quant"], *extras["lora"], *extras["eval"]]
    asked_for = [*project["dependencies"], *optional]
    declared = {canonicalize_name(Requirement(r).name) for r in asked_for}
    homes = packages_distributions()
    imported = {i.target.split(".")[0] for s in package_sources() for i in imports(s.tree)}
    undeclared = {
        name
        for name in imported - sys.stdlib_module_names - {"video_llama"}
        if not {canonicalize_name(home) for home in homes.get(name, [name])} & declared
    }
    assert undeclared == set()


def test_every_dependency_has_both_bounds(project: dict[str, Any]) -> None:
    extras = project["optional-dependencies"]
    everything = [*project["dependencies"], *extras["quant"], *extras["lora"], *extras["dev"]]
    for requirement in map(Requirement, everything):
        operators = {specifier.operator for specifier in requirement.specifier}
        assert operators in ({"=="}, {">=", "<"}) or requirement.name == "video-llama", requirement


@pytest.mark.parametrize(
    ("system", "machine", "wanted"),
    [
        ("linux", "x86_64", True),
        ("win32", "AMD64", True),
        ("linux", "aarch64", False),
        ("darwin", "arm64", False),
        ("darwin", "x86_64", False),
    ],
)
def test_decord_is_asked_for_only_where_it_has_wheels(
    project: dict[str, Any], system: str, machine: str, wanted: bool
) -> None:
    (decord,) = (r for r in map(Requirement, project["dependencies"]) if r.name == "decord")
    assert decord.marker is not None
    place = {"sys_platform": system, "platform_machine": machine}
    assert decord.marker.evaluate(place) is wanted


def test_help_lists_every_target() -> None:
    targets = set(re.findall(r"^([a-z][a-z-]*):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    make = ["make", "--no-print-directory", "help"]
    listed = subprocess.run(make, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert targets == {line.split()[1] for line in listed.splitlines()}
    assert {"install", "check", "test", "test-slow", "quickstart", "bench", "clean"} <= targets


def test_make_refuses_an_unknown_build_of_torch() -> None:
    make = ["make", "TORCH=gpu", "help"]
    result = subprocess.run(make, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert 'TORCH is "gpu"; it must be auto, cpu or cuda' in result.stderr


def test_make_names_the_python_that_is_too_old(tmp_path: Path) -> None:
    old = tmp_path / "old-python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.8.1\nexit 1\n')
    old.chmod(0o755)
    make = ["make", f"PYTHON={old}", f"VENV={tmp_path / 'venv'}", "TORCH=cpu", "install"]
    result = subprocess.run(make, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode != 0
    assert f"Python 3.10 or newer is needed; {old} is Python 3.8.1" in result.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    result = subprocess.run([*build, str(ROOT)], capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr
    (path,) = folder.glob("*.whl")
    return path


def tracked(*folders: str) -> set[str]:
    """Files of the checkout that belong to the project."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *folders]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if result.returncode != 0:
        pytest.skip("not a git checkout: which files belong to the project is unknown")
    return {name for name in result.stdout.splitlines() if (ROOT / name).exists()}


@pytest.mark.slow
def test_wheel_carries_every_file_that_ships(wheel: Path) -> None:
    inside = set(zipfile.ZipFile(wheel).namelist())
    expected = tracked("video_llama") | {f"video_llama/_data/{n}" for n in tracked(*SHIPPED)}
    assert {name for name in inside if ".dist-info/" not in name} == expected
    assert "video_llama/py.typed" in inside
    assert not any(name.startswith(("studies/", "tests/", "benchmarks/")) for name in inside)


@pytest.mark.slow
def test_installed_wheel_finds_its_files_and_its_command(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "site"
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    code = f"""
import json, sys
sys.path.insert(0, {str(target)!r})
import video_llama
from importlib.metadata import distribution
from video_llama.common.io import default_config_path, package_file, resource
places = [default_config_path(), package_file("presets/tiny"), *map(resource, {SHIPPED!r})]
meta = distribution("video-llama")
print(json.dumps({{
    "places": [str(path) for path in places if path.exists()],
    "version": [video_llama.__version__, meta.version],
    "scripts": {{e.name: e.value for e in meta.entry_points if e.group == "console_scripts"}},
}}))
"""
    # Isolated, and away from the checkout: only the installed copy can be found.
    command = [sys.executable, "-I", "-c", code]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    report = json.loads(result.stdout)
    assert len(report["places"]) == 2 + len(SHIPPED)
    assert all(Path(path).is_relative_to(target) for path in report["places"])
    assert report["version"][0] == report["version"][1]
    assert report["scripts"] == {"video-llama": "video_llama.apps.cli.main:main"}
