"""The four tiny trainings: what their YAMLs become, and what is kept of them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from video_llama.common.io import default_config_path
from video_llama.config.load import load_config
from video_llama.synthetic.quickstart import stages
from video_llama.synthetic.quickstart.stages import (
    STAGES,
    Launch,
    Stage,
    StageError,
    answering_options,
    run_stage,
    steps_done,
    train_all,
)
from video_llama.types import ConfigError

VIDEO_1, VIDEO_2, AUDIO_1, AUDIO_2 = STAGES
Commands = list[list[str]]


def launch(folder: Path, *options: str, scale: float = 0.01) -> Launch:
    (folder / "world").mkdir(exist_ok=True)
    return Launch(data=folder / "world", options=options, steps_scale=scale)


def option(command: Sequence[str], key: str) -> str:
    """The value that wins."""
    return [word for word in command if word.startswith(f"{key}=")][-1].partition("=")[2]


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> Commands:
    """The commands that were run, by something that leaves what a training leaves."""
    seen: Commands = []

    def run(command: list[str], stage: Stage, *_: Any) -> None:
        seen.append(command)
        folder = Path(option(command, "run.output_dir"))
        folder /= f"{stage.name}-{len(seen):03d}"
        cfg = load_config(stage.config_path, command[command.index("--options") + 1 :])
        steps = cfg.run.max_epoch * cfg.run.iters_per_epoch
        checkpoint = folder / f"checkpoints/step-{steps:06d}"
        checkpoint.mkdir(parents=True)
        (checkpoint / "branch.safetensors").write_text(str(len(seen)))
        lines = [{"step": 1, "loss": 2.5}, {"step": 1, "split": "valid", "loss": 9.0}]
        (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")

    monkeypatch.setattr(stages, "_run", run)
    return seen


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_every_path_of_the_world_is_moved(stage: Stage, tmp_path: Path) -> None:
    cfg = load_config(stage.config_path, launch(tmp_path).options_of(stage))
    assert cfg.datasets
    for entry in cfg.datasets.values():
        info = entry.build_info
        places = [place for place in (info.anno_dir, info.videos_dir, info.storage) if place]
        assert places
        assert [p for p in places if not p.startswith(str(tmp_path / "world"))] == []


def test_lengths_are_scaled_and_options_win(tmp_path: Path) -> None:
    whole = load_config(VIDEO_1.config_path).run
    half = load_config(VIDEO_1.config_path, launch(tmp_path, scale=0.5).options_of(VIDEO_1)).run
    assert half.iters_per_epoch == round(whole.iters_per_epoch / 2)
    assert half.warmup_steps == round(whole.warmup_steps / 2)
    none = load_config(VIDEO_1.config_path, launch(tmp_path, scale=0).options_of(VIDEO_1)).run
    assert (none.iters_per_epoch, none.warmup_steps) == (1, 0)
    asked = launch(tmp_path, "run.iters_per_epoch=7").options_of(VIDEO_1)
    assert load_config(VIDEO_1.config_path, asked).run.iters_per_epoch == 7


def test_a_stage_is_trained_once(commands: Commands, tmp_path: Path) -> None:
    first = run_stage(VIDEO_1, launch(tmp_path), out=tmp_path)
    assert first.loss == [(1, 2.5)]
    assert option(commands[0], "model.ckpt") == "null"
    assert run_stage(VIDEO_1, launch(tmp_path), out=tmp_path) == first
    assert len(commands) == 1


def change_the_world(folder: Path) -> tuple[str, ...]:
    (folder / "world").mkdir(exist_ok=True)
    (folder / "world/world.json").write_text('{"seed": 1}')
    return ()


def change_the_weights(folder: Path) -> tuple[str, ...]:
    (folder / "eva.safetensors").write_text("other values")
    return ()


@pytest.mark.parametrize(
    "change",
    [change_the_world, change_the_weights, lambda _: ("run.weight_decay=0.01",)],
    ids=["world", "weights", "option"],
)
def test_other_inputs_are_another_training(
    commands: Commands, tmp_path: Path, change: Callable[[Path], tuple[str, ...]]
) -> None:
    (tmp_path / "eva.safetensors").write_text("values")
    weights = f"model.vit_ckpt={tmp_path}/eva.safetensors"
    first = run_stage(VIDEO_1, launch(tmp_path, weights), out=tmp_path)
    more = change(tmp_path)
    second = run_stage(VIDEO_1, launch(tmp_path, weights), out=tmp_path, options=more)
    assert len(commands) == 2
    assert second.branch_path != first.branch_path


def test_where_features_are_kept_is_no_other_training(commands: Commands, tmp_path: Path) -> None:
    for name in "ab":
        cache = f"run.feature_cache={tmp_path}/{name}"
        run_stage(VIDEO_1, launch(tmp_path, cache), out=tmp_path)
    assert len(commands) == 1


def test_the_second_stage_starts_from_the_first(commands: Commands, tmp_path: Path) -> None:
    trained = train_all(
        lambda stage, start: run_stage(stage, launch(tmp_path), out=tmp_path, start=start),
        side_by_side=False,
    )
    assert list(trained) == list(STAGES)
    for number, key in ((0, "model.ckpt"), (2, "model.ckpt_2")):
        first, second = (trained[stage].branch_path for stage in STAGES[number : number + 2])
        assert option(commands[number], key) == "null"
        assert option(commands[number + 1], key) == str(first)
        assert second.parent != first.parent


def test_several_processes_go_through_torchrun(commands: Commands, tmp_path: Path) -> None:
    (tmp_path / "world").mkdir()
    two = Launch(data=tmp_path / "world", processes=2)
    run_stage(VIDEO_1, two, out=tmp_path / "a")
    run_stage(VIDEO_1, launch(tmp_path), out=tmp_path / "b")
    assert "torch.distributed.run" in commands[0]
    assert "--nproc_per_node=2" in commands[0]
    assert "torch.distributed.run" not in commands[1]


def test_a_training_that_fails_tells_the_end_of_its_log(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    program = [sys.executable, "-c", "import sys; print('no such clip'); sys.exit(3)"]
    monkeypatch.setattr(stages, "_program", lambda _: program)
    with pytest.raises(StageError, match=r"status 3; see .*log\.txt(.|\n)*no such clip"):
        run_stage(VIDEO_1, launch(tmp_path), out=tmp_path, log=tmp_path / "log.txt")


def test_a_training_that_was_stopped_is_not_taken_for_done(
    commands: Commands, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    whole = stages._run

    def stopped(command: list[str], *rest: Any) -> None:
        whole([*command, "run.iters_per_epoch=1"], *rest)

    monkeypatch.setattr(stages, "_run", stopped)
    with pytest.raises(StageError, match="stopped before its last step"):
        run_stage(VIDEO_1, launch(tmp_path, scale=1), out=tmp_path)


def test_the_trained_model_answers_with_the_frozen_parts_of_the_training(tmp_path: Path) -> None:
    changed = launch(tmp_path, "model.vit_ckpt=/x/eva.safetensors", "model.audio_feature_norm=none")
    both = answering_options(changed, {"video": Path("/v"), "audio": Path("/a")})
    model = load_config(default_config_path(), both).model
    assert (model.ckpt, model.ckpt_2, model.random_init) == ("/v", "/a", False)
    assert (model.vit_ckpt, model.audio_feature_norm) == ("/x/eva.safetensors", "none")
    training = load_config(AUDIO_2.config_path).model
    options = answering_options(launch(tmp_path), {"video": Path("/v")})
    model = load_config(default_config_path(), options).model
    assert (model.ckpt, model.ckpt_2, model.random_init) == ("/v", None, True)
    assert model.imagebind_ckpt_path == training.imagebind_ckpt_path
    assert model.audio_feature_norm == training.audio_feature_norm


def test_without_train_py_there_is_no_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def absent(name: str) -> Path:
        raise FileNotFoundError(name)

    monkeypatch.setattr(stages, "resource", lambda name: absent(name))
    with pytest.raises(ConfigError, match=r"train\.py is only in a checkout"):
        stages._program(launch(tmp_path))


def test_bars_follow_the_log_of_the_latest_run(tmp_path: Path) -> None:
    assert steps_done(tmp_path / "none") == 0
    log = tmp_path / "run/log.jsonl"
    log.parent.mkdir()
    log.write_text('{"step": 10, "loss": 1}\n{"step": 20, "loss": 1}\n{"step": 3')
    assert steps_done(tmp_path) == 20
