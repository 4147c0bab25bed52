"""The quickstart does every step once, skips what is finished, and says what has failed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from video_llama.common.io import default_config_path
from video_llama.config.load import load_config
from video_llama.synthetic.quickstart import steps
from video_llama.synthetic.quickstart.__main__ import main
from video_llama.synthetic.quickstart.stages import STAGES, Trained
from video_llama.types import VideoLlamaError

QUESTIONS = [
    {"type": "kind", "path": "a.mp4", "answer": "bell", "contradictory": False},
    {"type": "see", "path": "b.mp4", "answer": "a drum", "contradictory": True},
    {"type": "see", "path": "c.mp4", "answer": "a bird", "contradictory": False},
]
SCORES = [{"type": "kind", "condition": "all", "right": 3, "count": 4, "chance": 0.25}]


class Commands:
    """Stands for the program: keeps what it was called with, and writes what it would."""

    def __init__(self, *, fail: str = "") -> None:
        self.calls: list[list[str]] = []
        self.fail = fail

    def __call__(self, words: list[str]) -> str:
        self.calls.append(words)
        if words[0] == self.fail:
            raise steps.StepError(f"{words[0]} failed")
        if words[0] == "data":
            self.write_world(Path(words[words.index("--out") + 1]), words)
        if words[0] == "evaluate":
            content = json.dumps({"scores": SCORES})
            for option in ("--out", "--picture", "--page"):
                Path(words[words.index(option) + 1]).write_text(content)
        return "a bird\n"

    def write_world(self, out: Path, words: list[str]) -> None:
        num_clips, seed = (int(words[words.index(o) + 1]) for o in ("--num-clips", "--seed"))
        splits = [words[n + 1] for n, word in enumerate(words) if word == "--split"]
        found = steps.plan(num_clips, steps.World(seed=seed), splits=splits)  # type: ignore[arg-type]
        counts = {f"{split}/{source}": len(items) for (split, source), items in found.items()}
        (out / "test").mkdir(parents=True)
        (out / "test/questions.json").write_text(json.dumps(QUESTIONS))
        (out / "world.json").write_text(json.dumps({"world": {"seed": seed}, "items": counts}))


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    found = Commands()
    monkeypatch.setattr(steps, "_program", found)
    return found


class Trainings:
    """Stands for the trainings: keeps which stage began from which branch."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str | None, list[str]]] = []

    def __call__(
        self, stage: Any, launch: Any, *, out: Path, start: Path | None, options: Any, log: Path
    ) -> Trained:
        self.calls.append((stage.name, start and start.name, [*launch.options, *options]))
        return Trained(out / f"{stage.name}.safetensors", 1.0, [(1, 0.5)])


@pytest.fixture
def trainings(monkeypatch: pytest.MonkeyPatch) -> Trainings:
    found = Trainings()
    monkeypatch.setattr(steps, "run_stage", found)
    return found


def test_fast_makes_clips_scores_and_asks(
    tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--fast", "--out", str(tmp_path), "--num-clips", "8", "--limit", "6"]) == 0
    data, evaluate, ask = commands.calls
    assert data[data.index("--split") :] == ["--split", "test"]
    assert evaluate[evaluate.index("--cfg-path") + 1] == str(default_config_path())
    assert evaluate[evaluate.index("--limit") + 1] == "6"
    assert ask[1] == str(tmp_path / "clips/test/c.mp4"), "not the contradictory clip"
    output = capsys.readouterr().out
    assert "answer: a bird\n  truth:  a bird" in output
    assert "75 (30-95)" in output
    assert output.count("\n  video-llama ") == 3, "three commands to try next"


def test_finished_steps_are_skipped(tmp_path: Path, commands: Commands) -> None:
    argv = ["--fast", "--out", str(tmp_path), "--num-clips", "8"]
    assert main(argv) == 0
    assert main(argv) == 0
    assert [words[0] for words in commands.calls] == ["data", "evaluate", "ask", "ask"]
    assert main([*argv, "--limit", "2"]) == 0
    assert [words[0] for words in commands.calls[4:]] == ["evaluate", "ask"]


def test_another_seed_needs_another_world(tmp_path: Path, commands: Commands) -> None:
    argv = ["--fast", "--out", str(tmp_path), "--num-clips", "8"]
    assert main(argv) == 0
    wanted = steps.QuickstartOptions(out=tmp_path, fast=True, num_clips=8)
    assert steps._is_written(wanted)
    assert not steps._is_written(replace(wanted, seed=1))
    assert not steps._is_written(replace(wanted, num_clips=16))


@pytest.mark.parametrize("side_by_side", [False, True])
def test_four_stages_hand_on_their_branches(
    tmp_path: Path, commands: Commands, trainings: Trainings, side_by_side: bool
) -> None:
    argv = ["--out", str(tmp_path), "--num-clips", "8", "--seed", "3"]
    assert main([*argv, "--side-by-side"] if side_by_side else argv) == 0
    starts = {name: start for name, start, _ in trainings.calls}
    assert starts == {
        "visionbranch_stage1_pretrain": None,
        "visionbranch_stage2_finetune": "visionbranch_stage1_pretrain.safetensors",
        "audiobranch_stage1_pretrain": None,
        "audiobranch_stage2_finetune": "audiobranch_stage1_pretrain.safetensors",
    }
    sizes = {one.name: load_config(one.config_path).run.batch_size_train for one in STAGES}
    for name, _, options in trainings.calls:
        size = sizes[name]
        assert "run.seed=3" in options
        assert f"run.batch_size_train={size if side_by_side else size // 2}" in options
    values = yaml.safe_load((tmp_path / "model.yaml").read_text())
    assert values["model"]["ckpt"] == str(tmp_path / "visionbranch_stage2_finetune.safetensors")
    assert values["model"]["ckpt_2"] == str(tmp_path / "audiobranch_stage2_finetune.safetensors")
    assert values["model"]["random_init"] is False
    assert load_config(tmp_path / "model.yaml").model.ckpt_2 == values["model"]["ckpt_2"]


def test_a_step_that_fails_ends_it_and_keeps_what_is_finished(
    tmp_path: Path, commands: Commands, capsys: pytest.CaptureFixture[str]
) -> None:
    commands.fail = "evaluate"
    argv = ["--fast", "--out", str(tmp_path), "--num-clips", "8"]
    assert main(argv) == 1
    errors = capsys.readouterr().err
    assert "evaluate failed" in errors
    assert "run it again" in errors
    commands.fail = ""
    assert main(argv) == 0
    assert [words[0] for words in commands.calls] == ["data", "evaluate", "evaluate", "ask"]


def test_a_failed_command_is_shown_with_how_to_repeat_it(tmp_path: Path) -> None:
    missing = tmp_path / "no such.json"
    with pytest.raises(VideoLlamaError, match="to repeat this step") as caught:
        steps._program(["evaluate", str(missing)])
    assert f"video-llama evaluate '{missing}'" in str(caught.value)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_everything_once_with_few_steps(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    options = ["model.random_init=true", "run.num_workers=0", "run.batch_size_train=2"]
    keys = ("vit_ckpt", "q_former_model", "imagebind_ckpt_path")
    options += [f"model.{key}=null" for key in keys]
    few = ["--num-clips", "64", "--limit", "2", "--steps-scale", "0.01"]
    assert main(["--out", str(tmp_path / "out"), *few, "--options", *options]) == 0
    output, errors = capfd.readouterr()
    assert "Right answers in percent" in output, errors[-2000:]
    assert "Try next" in output
    assert (tmp_path / "out/samples.html").exists()
