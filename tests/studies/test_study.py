"""Studies: what is trained and scored, and that it is done once."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from studies.study import run as study_run
from studies.study.__main__ import main
from studies.study.clips import clip_of, encode_clips, read_clips
from studies.study.definitions import ABLATIONS, AUDIO, NARROW, SCALES, STUDIES, BranchTraining
from studies.study.run import StudyRun, run_study
from tests.tiny_chat import media_files, tiny_model
from video_llama.apps.evaluate.examine import Examiner
from video_llama.apps.evaluate.questions import CONDITIONS
from video_llama.common.io import default_config_path
from video_llama.config.load import load_config
from video_llama.synthetic.quickstart.stages import Stage, Trained
from video_llama.synthetic.splits import SPLITS

QUESTION = {
    "id": "a_kind",
    "path": "a.mp4",
    "question": "What?",
    "answer": "bell",
    "type": "hear",
    "chance": 0.5,
    "opposite": None,
    "contradictory": False,
}


def trainings() -> list[BranchTraining]:
    return list({r.name: r for study in STUDIES.values() for r in study.trainings()}.values())


def test_names_of_recipes_and_arms_are_unique() -> None:
    for study in STUDIES.values():
        names = [arm.name for arm in study.arms]
        assert len(set(names)) == len(names)
        assert set(study.question_types) <= set(CONDITIONS)
        assert set(study.splits) <= set(SPLITS)
    every = {recipe for study in STUDIES.values() for recipe in study.trainings()}
    assert len({recipe.name for recipe in every}) == len(every)


@pytest.mark.parametrize("recipe", trainings(), ids=lambda recipe: recipe.name)
def test_recipes_change_the_shipped_configurations(recipe: BranchTraining, tmp_path: Path) -> None:
    for stage in recipe.stages():
        cfg = load_config(stage.config_path, recipe.options_of(stage, tmp_path))
        assert cfg.model.trained_branch == recipe.branch
        assert (list(cfg.datasets) == ["audio_caption"]) is recipe.on_sound
        assert (cfg.model.prompt_path is None) or not recipe.on_sound
    assert load_config(default_config_path(), recipe.options)


def test_the_narrow_scale_is_that_of_the_shipped_configurations() -> None:
    for stage in AUDIO.stages():
        assert load_config(stage.config_path).model.position_init_std == NARROW
    stds = {
        load_config(recipe.stages()[0].config_path, recipe.options).model.position_init_std
        for recipe in SCALES.trainings()
    }
    assert stds == {1.0, NARROW}


def test_without_stage_1_stage_2_comes_first() -> None:
    arm = next(arm for arm in ABLATIONS.arms if arm.name == "no-stage-1")
    assert [[stage.number for stage in recipe.stages()] for recipe in arm.trainings] == [[2], [2]]


@pytest.fixture
def plan(tmp_path: Path) -> StudyRun:
    folder = tmp_path / "world/valid"
    folder.mkdir(parents=True)
    (folder / "questions.json").write_text(json.dumps([QUESTION]))
    seeds = (0, 1)
    return StudyRun(
        study=SCALES, data=tmp_path / "world", out=tmp_path / "out", seeds=seeds, splits=("valid",)
    )


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What was trained and asked, by something quick in this process."""
    seen: list[str] = []

    def train(stage: Stage, launch: Any, *, out: Path, **_: Any) -> Trained:
        branch = out / stage.name / "branch.safetensors"
        if not branch.exists():
            seen.append(f"{out.name} {stage.number}")
            branch.parent.mkdir(parents=True)
            branch.write_text(branch.as_posix())
        return Trained(branch, 1.5, [(10, 2.0), (20, 1.0)])

    def ask(plan: StudyRun, cfg: Any, arm: Any, seed: int, split: str) -> list[dict[str, Any]]:
        seen.append(f"asked {arm.name} {seed} {cfg.model.audio_feature_norm}")
        score = {"type": "hear", "condition": "sound", "right": 1, "count": 2, "chance": 0.5}
        return [score]

    def each(work: Callable[[Any], Any], cases: Sequence[Any], *_: Any) -> list[Any]:
        return [work(case) for case in cases]

    monkeypatch.setattr(study_run, "run_stage", train)
    monkeypatch.setattr(study_run, "_ask", ask)
    monkeypatch.setattr(study_run, "_encode", lambda case: None)
    monkeypatch.setattr(study_run, "_each", each)
    return seen


def test_arms_share_trainings_and_are_scored_with_their_options(
    plan: StudyRun, done: list[str]
) -> None:
    result = run_study(plan)
    trained = [line for line in done if not line.startswith("asked")]
    names = ("audio-wide-seed0", "audio-wide-seed1", "audio-seed0", "audio-seed1")
    assert trained == [f"{name} {stage}" for name in names for stage in (1, 2)]
    asked = [line.removeprefix("asked ") for line in done if line.startswith("asked")]
    assert asked == [
        f"positions-{std}-norm-{norm} {seed} {norm}"
        for std in ("1", "0.2")
        for norm in ("none", "unit")
        for seed in (0, 1)
    ]
    assert [len(result[key]) for key in ("runs", "trainings")] == [8, 4]
    assert result["trainings"][0]["stages"][AUDIO.stages()[0].name]["loss"] == [[10, 2], [20, 1]]


def test_what_has_been_scored_is_not_asked_again(plan: StudyRun, done: list[str]) -> None:
    first = run_study(plan)
    done.clear()
    assert run_study(plan) == first
    assert done == []
    path = plan.data / "valid/questions.json"
    path.write_text(json.dumps([QUESTION, QUESTION | {"id": "b"}]))
    run_study(plan)
    assert len(done) == 8


def test_a_score_that_was_not_finished_is_asked_again(plan: StudyRun, done: list[str]) -> None:
    run_study(plan)
    done.clear()
    next((plan.out / "scores").iterdir()).unlink()
    run_study(plan)
    assert len(done) == 1


def test_kept_clips_give_the_tokens_of_clips_that_are_read(tmp_path: Path) -> None:
    model, paths = tiny_model(), [media_files()[name] for name in ("talkie", "silent")]
    encode_clips(model, paths, tmp_path / "clips.pt")
    examiner, random = Examiner(model, seed=3), torch.Generator().manual_seed(3)
    for path, encoded in read_clips(tmp_path / "clips.pt").items():
        read, kept = examiner.read(path), clip_of(encoded, model, random)
        for name in ("sound", "picture", "shuffled"):
            one, other = getattr(read, name), getattr(kept, name)
            assert (one is None) == (other is None) == (name == "sound" and path == paths[1])
            if one is not None:
                assert one.media == other.media
                torch.testing.assert_close(one.tokens, other.tokens)
        assert not torch.equal(kept.picture.tokens, kept.shuffled.tokens)


def test_without_a_world_the_command_says_how_to_write_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["seeds", "--data", str(tmp_path)]) == 1
    assert f"no world there; video-llama data synth --out {tmp_path}" in capsys.readouterr().err


def finished(study: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *more: str) -> Path:
    """Run the command with a study that is done at once; where it wrote the result."""
    (tmp_path / "world").mkdir()
    (tmp_path / "world/world.json").touch()
    score = {"type": "hear", "condition": "sound", "right": 1, "count": 2, "chance": 0.5}

    def run(plan: StudyRun, *, jobs: int) -> dict[str, Any]:
        loss = {stage.name: {"seconds": 1, "loss": [[1, 2.0]]} for stage in AUDIO.stages()}
        return {
            "study": plan.study.name,
            "seeds": list(plan.seeds),
            "trainings": [{"recipe": r.name, "stages": loss} for r in plan.study.trainings()],
            "runs": [
                {"arm": arm.name, "split": plan.splits[0], "scores": [score]}
                for arm in plan.study.arms
            ],
        }

    monkeypatch.setattr("studies.study.__main__.run_study", run)
    places = {name: str(tmp_path / name) for name in ("out", "results")}
    words = [study, "--data", str(tmp_path / "world"), *more]
    assert main([*words, "--out", places["out"], "--results", places["results"]]) == 0
    (path,) = [*tmp_path.glob("out/*.json"), *tmp_path.glob("results/*.json")]
    return path


@pytest.mark.parametrize(
    ("more", "folder"),
    [
        ((), "results"),
        (("--split", "valid"), "out"),
        (("--steps-scale", "0.5"), "out"),
        (("--limit", "3"), "out"),
        (("--options", "run.init_lr=1e-3"), "out"),
    ],
    ids=lambda value: " ".join(value),
)
def test_only_whole_studies_on_test_data_become_results(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    more: tuple[str, ...],
    folder: str,
) -> None:
    path = finished("scales", monkeypatch, tmp_path, *more)
    assert path == tmp_path / folder / "study_scales.json"
    assert "| 1, none | 50.0 |" in capsys.readouterr().out
