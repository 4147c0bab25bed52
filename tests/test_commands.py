"""Every command of the README and of docs/ is one that the programs accept, on paths that exist."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import train
from tests.reference import ROOT
from video_llama.apps.cli.main import parse

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
OURS = tuple(f"{path.name}/" for path in ROOT.iterdir() if path.is_dir() and path.name != "output")
"""What a path of the repository begins with; all others are a user's."""


def blocks(page: Path, language: str) -> Iterator[str]:
    """Yield the fenced blocks of a language, also those of lists."""
    fence = rf"^ *```{language}\n(.*?)^ *```$"
    yield from re.findall(fence, page.read_text("utf-8"), re.DOTALL | re.MULTILINE)


def commands(page: Path) -> list[str]:
    """Return the commands of a page, one line each and without comments."""
    lines = "\n".join(blocks(page, "bash")).replace("\\\n", " ").splitlines()
    parts = [part for line in lines for part in re.split(r" #|&&", line)[: 1 + line.count("&&")]]
    return [" ".join(part.split()) for part in parts if part.strip() and part.strip()[0] != "#"]


ALL = [
    pytest.param(command, id=f"{page.stem}: {command}")
    for page in PAGES
    for command in commands(page)
]


def test_commands_are_found() -> None:
    found = commands(ROOT / "README.md")
    assert found[:2] == ["make install", "source .venv/bin/activate"]
    assert 'video-llama ask examples/bells_and_a_drum.mp4 "What do you see?"' in found
    assert len(ALL) > 40


@pytest.mark.parametrize("command", ALL)
def test_a_command_is_accepted(command: str) -> None:
    match shlex.split(command):
        case ["video-llama", *arguments]:
            parse(arguments)
        case ["python", "demo_audiovideo.py", *arguments]:
            parse(["demo", *arguments])
        case ["python", "train.py", *arguments]:
            train.parse_arguments(arguments)
        case ["torchrun", *arguments]:
            train.parse_arguments(arguments[arguments.index("train.py") + 1 :])
        case ["python", "-m", module, *_]:
            assert importlib.util.find_spec(module) is not None
        case ["make", target, *_]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text("utf-8"), re.MULTILINE)
        case ["source", ".venv/bin/activate"] | [".venv/bin/pre-commit", "install", *_]:
            pass
        case _:
            pytest.fail(f"no program is known for: {command}")


@pytest.mark.parametrize("command", ALL)
def test_paths_of_the_repository_exist(command: str) -> None:
    words = [word for word in shlex.split(command) if word.startswith(OURS)]
    made_by_it = {".venv/bin/activate", ".venv/bin/pre-commit"}
    missing = [word for word in words if not (ROOT / word).exists() and word not in made_by_it]
    assert [word for word in missing if not word.startswith("data/")] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_paths_in_code_spans_exist(page: Path) -> None:
    roots = r"(?:video_llama|tests|studies|benchmarks|docs|examples|\w+_configs|prompts|launch)"
    named = re.findall(rf"`({roots}/[\w./-]+?)/?`", page.read_text("utf-8"))
    missing = [name for name in named if not (ROOT / name).exists()]
    assert [name for name in missing if not Path(name).name.startswith("my_")] == []


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a copy of the repository in which nothing has been run."""
    copy = tmp_path_factory.mktemp("clone") / "video-llama"
    unwanted = shutil.ignore_patterns(".venv", ".git", "output", "data", "ckpt", "__pycache__")
    shutil.copytree(ROOT, copy, ignore=unwanted)
    # The tree is whole without these: `datasets/` of the package is not `data/`.
    assert (copy / "video_llama" / "datasets").is_dir()
    return copy


def run(command: str, checkout: Path) -> str:
    """Run a command of the README as a user in the copy would; return what it prints."""
    program, *arguments = shlex.split(command)
    start = [sys.executable, "-m", "video_llama.apps.cli.main"]
    words = [*start, *arguments] if program == "video-llama" else [sys.executable, *arguments]
    environment = os.environ | {"PYTHONPATH": str(checkout)}
    done = subprocess.run(
        words,
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, f"{command}\n{done.stderr}"
    return done.stdout


def readme_commands(*beginnings: str) -> list[str]:
    return [line for line in commands(ROOT / "README.md") if line.startswith(beginnings)]


@pytest.mark.slow
def test_the_first_commands_of_the_readme_give_the_answers_beside_them(checkout: Path) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    expected = re.findall(r"^(video-llama ask examples/.+?) +# (.+)$", text, re.MULTILINE)
    assert [answer for _, answer in expected] == ["a bell", "a drum"]
    for command, answer in expected:
        assert run(command, checkout).strip() == answer


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_readme_trains(checkout: Path) -> None:
    synth, training = readme_commands(
        "video-llama data synth", "python train.py --cfg-path train_configs/tiny"
    )
    run(synth, checkout)
    run(training, checkout)
    assert list(checkout.glob("output/**/branch.safetensors"))


@pytest.mark.slow
def test_the_readme_estimates_chats_and_answers_files_of_questions(checkout: Path) -> None:
    estimate, chat, batch, evaluate = readme_commands(
        "video-llama estimate", "video-llama chat", "video-llama batch", "video-llama evaluate"
    )
    assert "samples" in run(estimate, checkout)
    run(chat, checkout)
    question = {"question": "What do you see?", "video": "examples/bird.mp4"}
    (checkout / "questions.jsonl").write_text(json.dumps(question) + "\n", "utf-8")
    run(batch, checkout)
    assert "bird" in (checkout / "answers.jsonl").read_text("utf-8")
    pair = {"q": question["question"], "a": "a bird"}
    scored = [{"video": "examples/bird.mp4", "QA": [pair]}]
    (checkout / "questions.json").write_text(json.dumps(scored), "utf-8")
    run(evaluate, checkout)
    assert (checkout / "samples.html").is_file()


@pytest.mark.slow
def test_the_python_of_the_readme_answers(checkout: Path) -> None:
    (code,) = blocks(ROOT / "README.md", "python")
    (checkout / "example.py").write_text(code, "utf-8")
    assert run("python example.py", checkout) == "a bird"


@pytest.mark.slow
@pytest.mark.parametrize(
    "command", sorted({p.values[0] for p in ALL if p.values[0].startswith("python -m ")})
)
def test_options_of_modules_are_in_their_help(command: str) -> None:
    _, _, module, *arguments = shlex.split(command)
    done = subprocess.run(
        [sys.executable, "-m", module, "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0
    for word in arguments:
        if word.startswith("--"):
            assert word in done.stdout
