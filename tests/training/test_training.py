"""Training from a YAML to a branch file, on small data sets of every format."""

from __future__ import annotations

import errno
import json
import math
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from tests.media import truncate
from tests.reference import ROOT
from tests.training.training_data import (
    STAGE_1,
    STAGE_2,
    branch,
    config_path,
    log_lines,
    losses,
    run_folder,
    tiny_options,
    train,
    write_data,
)
from video_llama.common.io import DiskFullError
from video_llama.config.build import build_model
from video_llama.config.build_run import build_runner
from video_llama.config.load import load_config
from video_llama.datasets.base import SplitInfo
from video_llama.datasets.items import CaptionItems
from video_llama.datasets.prepare.pack import pack
from video_llama.datasets.webvid import WebvidSettings
from video_llama.runners import task
from video_llama.runners.folder import RunFolderError
from video_llama.runners.hooks import Hook, JsonLog
from video_llama.runners.optim import build_optimizer, step_seed
from video_llama.runners.runner import Runner
from video_llama.runners.state import RunState
from video_llama.types import (
    ConfigError,
    DivergedError,
    LocalError,
    TooManyBadItemsError,
    WeightsError,
)

VISION_1, VISION_2 = ("visionbranch", STAGE_1), ("visionbranch", STAGE_2)
AUDIO_1, AUDIO_2 = ("audiobranch", STAGE_1), ("audiobranch", STAGE_2)
LEAST_FALL = {STAGE_1: 0.25, STAGE_2: 0.15}
"""How far the loss has to fall in 24 steps; the text of a stage-2 conversation is longer."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "set")


def runner(
    case: tuple[str, str], data: Path, output: Path, *more: str, hooks: tuple[Hook, ...] = ()
) -> Runner:
    options = [*tiny_options(*case, data, output), *more]
    built = build_runner(load_config(config_path(*case), options), name="run")
    built.hooks = [*hooks, *built.hooks]
    return built


def memorised(run: Path, stage: str) -> None:
    found = losses(run)
    assert len(found) == 24
    assert sum(found[:3]) / 3 - sum(found[-3:]) / 3 > LEAST_FALL[stage], found


@pytest.mark.parametrize(
    ("case", "processes"),
    [
        (VISION_1, 2),
        (VISION_2, 0),
        (AUDIO_1, 0),
        (AUDIO_2, 2),
        pytest.param(VISION_1, 0, marks=pytest.mark.slow),
        pytest.param(VISION_2, 2, marks=pytest.mark.slow),
        pytest.param(AUDIO_1, 2, marks=pytest.mark.slow),
        pytest.param(AUDIO_2, 0, marks=pytest.mark.slow),
    ],
)
def test_shipped_configurations_train(
    case: tuple[str, str], processes: int, data: Path, tmp_path: Path
) -> None:
    options = tiny_options(*case, data, tmp_path / "runs")
    rates = ("run.init_lr=5e-3", "run.min_lr=5e-3", "run.iters_per_epoch=24")
    train(config_path(*case), [*options, *rates], processes=processes)
    run = run_folder(tmp_path / "runs")
    assert run.name.startswith("_".join(case))
    memorised(run, case[1])
    assert {"config.yaml", "environment.json", "log.jsonl", "tensorboard"} <= {
        path.name for path in run.iterdir()
    }
    assert load_config(run / "config.yaml").run.init_lr == 5e-3


@pytest.mark.parametrize("case", [VISION_1, AUDIO_2])
def test_only_the_branch_changes_and_only_it_is_saved(
    case: tuple[str, str], data: Path, tmp_path: Path
) -> None:
    trains = runner(case, data, tmp_path, "run.iters_per_epoch=3")
    model = trains.components.task.model
    before = {name: value.clone() for name, value in model.state_dict().items()}
    trained = {id(parameter) for _, parameter in trains.components.trainable}
    names = {name for name, parameter in model.named_parameters() if id(parameter) in trained}
    assert trains.train()
    changed = {n for n, v in model.state_dict().items() if not torch.equal(v, before[n])}
    assert changed == names
    saved = branch(trains.state.folder, 3)
    assert saved.keys() == {name for name, _ in trains.components.trainable}
    assert saved == {n: p.detach().numpy().tobytes() for n, p in trains.components.trainable}


def test_checkpoint_serves_as_branch_file_and_as_the_start_of_stage_2(
    data: Path, tmp_path: Path
) -> None:
    first = runner(VISION_1, data, tmp_path / "1", "run.iters_per_epoch=2")
    first.train()
    assert first.state.checkpoint is not None
    file = first.state.checkpoint / "branch.safetensors"
    options = [*tiny_options(*VISION_2, data, tmp_path / "2"), f"model.ckpt={file}"]
    model = build_model(load_config(config_path(*VISION_2), options))
    for name, parameter in model.trainable_parameters():
        assert parameter.detach().numpy().tobytes() == branch(first.state.folder, 2)[name], name
    second = runner(VISION_2, data, tmp_path / "2", f"model.ckpt={file}", "run.iters_per_epoch=2")
    assert second.train()
    assert stages(first) == (1, 2)
    assert stages(second) == (2, 2)


def stages(trains: Runner) -> tuple[int, int]:
    """Stage and steps in the manifest of a run's last checkpoint."""
    assert trains.state.checkpoint is not None
    with safe_open(trains.state.checkpoint / "branch.safetensors", "pt") as file:
        manifest = json.loads(file.metadata()["manifest"])
    return manifest["stage"], manifest["step"]


@pytest.mark.parametrize(
    ("case", "change", "message"),
    [
        (AUDIO_2, "model.equip_audio_branch=false", "holds the audio branch"),
        (AUDIO_2, "model.model_type=pretrain_vicuna", "template llama_v2"),
        (VISION_1, "model.llama_model={wide}", "128 wide"),
    ],
)
def test_branch_file_says_where_it_fits(
    case: tuple[str, str], change: str, message: str, data: Path, tmp_path: Path
) -> None:
    trains = runner(case, data, tmp_path / "runs", "run.iters_per_epoch=1")
    trains.train()
    assert trains.state.checkpoint is not None
    wide = tmp_path / "wide"
    wide.mkdir()
    llama = ROOT / "video_llama/presets/tiny/llama"
    config = json.loads((llama / "config.json").read_text())
    (wide / "config.json").write_text(json.dumps({**config, "hidden_size": 64}))
    (wide / "tokenizer.model").write_bytes((llama / "tokenizer.model").read_bytes())
    options = [
        *tiny_options(*case, data, tmp_path),
        *("model.frozen_video_Qformer=true", "model.frozen_audio_Qformer=true"),
        "model.frozen_llama_proj=true",
        change.format(wide=wide),
        f"model.ckpt={trains.state.checkpoint / 'branch.safetensors'}",
    ]
    with pytest.raises(WeightsError, match=message):
        build_model(load_config(config_path(*case), options))


class Crash(Hook):
    """Stands for a power cut after some update."""

    def __init__(self, step: int) -> None:
        self._step = step

    def after_update(self, run: RunState) -> None:
        if run.step >= self._step:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    ("case", "more"),
    [
        (VISION_1, ("run.num_workers=1",)),
        (AUDIO_2, ("run.accum_grad_iters=3", "run.grad_clip=0.05")),
    ],
)
def test_resumed_run_has_the_same_bits(
    case: tuple[str, str], more: tuple[str, ...], data: Path, tmp_path: Path
) -> None:
    more = (*more, "run.iters_per_epoch=13", "run.save_every=4")
    whole = runner(case, data, tmp_path / "whole", *more)
    assert whole.train()
    broken = runner(case, data, tmp_path / "broken", *more, hooks=(Crash(10),))
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    latest = ("run.resume_ckpt_path=latest", "run.num_workers=0")
    resumed = runner(case, data, tmp_path / "broken", *more, *latest)
    assert 0 < resumed.state.step < 10
    assert resumed.train()
    assert resumed.state.folder == broken.state.folder
    assert log_lines(resumed.state.folder) == log_lines(whole.state.folder)
    assert branch(resumed.state.folder, 13) == branch(whole.state.folder, 13)


def test_run_that_began_with_files_goes_on_with_shards(data: Path, tmp_path: Path) -> None:
    report = pack(
        "webvid",
        WebvidSettings().read(
            SplitInfo(anno_dir=str(data / "csv"), videos_dir=str(data / "clips"))
        ),
        tmp_path / "tars",
        samples_per_shard=3,
    )
    shards = (
        f"datasets.webvid.build_info={{storage: '{report.storage}'}}",
        "datasets.cc_sbu_align.sample_ratio=0.001",
        "run.iters_per_epoch=6",
    )
    files = shards[1:]
    whole = runner(VISION_1, data, tmp_path / "whole", *files)
    whole.train()
    packed = runner(VISION_1, data, tmp_path / "packed", *shards)
    packed.train()
    more = (*files, "run.save_every=2")
    broken = runner(VISION_1, data, tmp_path / "broken", *more, hooks=(Crash(3),))
    with pytest.raises(KeyboardInterrupt):
        broken.train()
    resumed = runner(VISION_1, data, tmp_path / "broken", *shards, "run.resume_ckpt_path=latest")
    assert resumed.train()
    for run in (packed.state.folder, resumed.state.folder):
        assert log_lines(run) == log_lines(whole.state.folder)
        assert branch(run, 6) == branch(whole.state.folder, 6)


def test_full_disk_ends_the_run_with_the_last_checkpoint_intact(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = ("run.iters_per_epoch=4", "run.save_every=2")
    trains = runner(VISION_1, data, tmp_path, *more)
    write = trains.state.write_branch

    def full(path: Path, step: int) -> None:
        if step > 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(path, step)

    monkeypatch.setattr(trains.state, "write_branch", full)
    with pytest.raises(DiskFullError, match="no room for the checkpoint of step 4"):
        trains.train()
    resumed = runner(VISION_1, data, tmp_path, *more, "run.resume_ckpt_path=latest")
    assert resumed.state.step == 2
    assert resumed.train()


def test_full_disk_under_the_log_is_told_as_such(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(hook: JsonLog, run: RunState) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(JsonLog, "after_update", full)
    trains = runner(VISION_1, data, tmp_path, "run.iters_per_epoch=1")
    with pytest.raises(
        DiskFullError, match=rf"no room for the logs in {trains.state.folder} .*go on with"
    ):
        trains.train()


@pytest.mark.parametrize("place", ["log", "checkpoint", "evaluation"])
def test_disk_that_turns_read_only_ends_the_run_with_one_error(
    place: str, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    more = (
        *("run.iters_per_epoch=2", "run.max_epoch=2", "run.answer_max_new_tokens=2"),
        *(f"datasets.webvid.build_info.valid={{anno_dir: {data}/csv}}", "run.valid_splits=[valid]"),
    )
    trains = runner(VISION_1, data, tmp_path, *more)
    log = JsonLog.after_update

    def read_only(*_: Any, **__: Any) -> None:
        if trains.state.step > 2:
            raise OSError(errno.EROFS, "Read-only file system", str(trains.state.folder / place))

    def first_that(hook: JsonLog, run: RunState) -> None:
        read_only()
        log(hook, run)

    def failing(write: Any) -> Any:
        return lambda *args, **keys: read_only() or write(*args, **keys)

    if place == "log":
        monkeypatch.setattr(JsonLog, "after_update", first_that)
    elif place == "checkpoint":
        write = failing(trains.state.write_branch)
        monkeypatch.setattr(trains.state, "write_branch", write)
    else:
        monkeypatch.setattr(task, "_write_lines", failing(task._write_lines))
    with pytest.raises(RunFolderError, match=rf"{place}: the run cannot write there .*Read-only"):
        trains.train()
    monkeypatch.undo()
    resumed = runner(VISION_1, data, tmp_path, *more, "run.resume_ckpt_path=latest")
    assert resumed.state.step == 2, "the lock is free and the last checkpoint whole"


def test_checkpoint_that_is_no_state_of_a_training_is_refused(data: Path, tmp_path: Path) -> None:
    first = runner(VISION_1, data, tmp_path, "run.iters_per_epoch=1")
    first.train()
    assert first.state.checkpoint is not None
    torch.save({"step": 1}, first.state.checkpoint / "state.pt")
    seal = json.loads((first.state.checkpoint / "complete.json").read_text())
    del seal["sha256"]
    seal["files"]["state.pt"] = (first.state.checkpoint / "state.pt").stat().st_size
    (first.state.checkpoint / "complete.json").write_text(json.dumps(seal))
    with pytest.raises(WeightsError, match="no state of a training, it lacks hooks, identity, opt"):
        runner(VISION_1, data, tmp_path, f"run.resume_ckpt_path={first.state.checkpoint}")


def test_finished_run_can_be_resumed_and_extended(data: Path, tmp_path: Path) -> None:
    first = runner(VISION_1, data, tmp_path, "run.iters_per_epoch=2")
    first.train()
    again = ("run.iters_per_epoch=2", "run.resume_ckpt_path=latest")
    assert runner(VISION_1, data, tmp_path, *again).train()
    longer = runner(VISION_1, data, tmp_path, *again, "run.max_epoch=2")
    assert longer.train()
    assert [line["step"] for line in log_lines(longer.state.folder)] == [1, 2, 3, 4]
    with pytest.raises(ConfigError, match="has 4 steps behind it"):
        runner(VISION_1, data, tmp_path, *again)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("run.seed=1", "run.seed: 42 in the checkpoint, 1 now"),
        ("run.batch_size_train=1", "run.batch_size_train: 2 in the checkpoint, 1 now"),
        ("run.accum_grad_iters=2", "run.accum_grad_iters: 1 in"),
        ("datasets.webvid.sample_ratio=7", "datasets.webvid.sample_ratio"),
    ],
)
def test_run_is_not_resumed_as_another_one(
    change: str, message: str, data: Path, tmp_path: Path
) -> None:
    runner(VISION_1, data, tmp_path, "run.iters_per_epoch=1").train()
    with pytest.raises(ConfigError, match=message):
        runner(VISION_1, data, tmp_path, "run.resume_ckpt_path=latest", change)


def test_accumulated_steps_are_averaged_into_one_update(data: Path, tmp_path: Path) -> None:
    more = ("run.iters_per_epoch=4", "run.init_lr=1e-3", "run.min_lr=1e-3")
    accumulated = runner(VISION_1, data, tmp_path / "a", *more, "run.accum_grad_iters=2")
    accumulated.train()

    by_hand = runner(VISION_1, data, tmp_path / "b", *more)
    model = by_hand.components.task.model.train()
    optimizer = build_optimizer(by_hand.components.trainable, by_hand.settings)
    for step, batch in enumerate(by_hand.components.train_batches(0, 4)):
        torch.manual_seed(step_seed(42, step, 0))
        (model(batch).loss / 2).backward()
        if step % 2:
            optimizer.step()
            optimizer.zero_grad()
    wanted = {name: p.detach().numpy().tobytes() for name, p in by_hand.components.trainable}
    assert branch(accumulated.state.folder, 4) == wanted


def poisoned(trains: Runner, is_bad: Callable[[int], bool]) -> None:
    """Make the loss NaN after some numbers of steps done."""
    inner = trains.components.task.train_step
    trained: Any = trains._trained

    def step(batch: Any) -> Tensor:
        loss = inner(batch)
        return loss * math.nan if is_bad(trains.state.step) else loss

    trained._step = step


def test_lost_step_is_skipped_and_counted(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    trains = runner(VISION_1, data, tmp_path, "run.iters_per_epoch=4", "run.max_nonfinite_steps=1")
    poisoned(trains, lambda step: step in (2, 4))
    assert trains.train()
    assert [math.isnan(loss) for loss in losses(trains.state.folder)] == [False, True, False, True]
    assert "step 2: loss or gradient not finite, skipped: " in caplog.text
    for name, parameter in trains.components.trainable:
        assert parameter.isfinite().all(), name


def test_lost_run_stops_with_its_items_and_keeps_the_last_good_checkpoint(
    data: Path, tmp_path: Path
) -> None:
    more = ("run.iters_per_epoch=9", "run.max_nonfinite_steps=2", "run.save_every=3")
    trains = runner(VISION_1, data, tmp_path, *more)
    poisoned(trains, lambda step: step > 4)
    with pytest.raises(DivergedError, match=r"3 updates in a row .*at step 7 .*\.(mp4|jpg)"):
        trains.train()
    found = sorted(path.name for path in (trains.state.folder / "checkpoints").iterdir())
    assert found == ["step-000003", "step-000006"]
    resumed = runner(VISION_1, data, tmp_path, *more, "run.resume_ckpt_path=latest")
    for name, parameter in resumed.components.trainable:
        assert parameter.isfinite().all(), name


@pytest.fixture
def many_pictures(tmp_path: Path) -> Path:
    return write_data(tmp_path / "many", num_items=30)


def only_pictures() -> tuple[str, ...]:
    return ("datasets.webvid.sample_ratio=0", "run.iters_per_epoch=40", "run.batch_size_train=3")


def test_a_few_broken_items_are_replaced_and_each_is_listed_once(
    many_pictures: Path, tmp_path: Path
) -> None:
    broken = many_pictures / "align/image/7.jpg"
    truncate(broken, 0.2)
    trains = runner(VISION_1, many_pictures, tmp_path / "runs", *only_pictures())
    assert trains.train()
    (line,) = map(json.loads, (trains.state.folder / "bad_items.jsonl").read_text().splitlines())
    assert line["data_set"] == "cc_sbu_align"
    assert line["path"] == str(broken)
    (hook,) = [hook for hook in trains.hooks if hook.name == "bad_items"]
    counts = hook.state_dict()
    assert counts["asked"]["cc_sbu_align"] - counts["bad"]["cc_sbu_align"] == 120
    assert 3 <= counts["bad"]["cc_sbu_align"] <= 5, "once per epoch of 30 items, plus replacement"


def test_too_many_broken_items_stop_the_run(many_pictures: Path, tmp_path: Path) -> None:
    for i in range(0, 30, 3):
        (many_pictures / f"align/image/{i}.jpg").write_text("not a picture")
    trains = runner(VISION_1, many_pictures, tmp_path / "runs", *only_pictures())
    with pytest.raises(TooManyBadItemsError, match=r"data set cc_sbu_align: .* of 1\d\d items"):
        trains.train()
    assert len((trains.state.folder / "bad_items.jsonl").read_text().splitlines()) == 10


def test_evaluation_measures_loss_and_answers_and_keeps_the_best(
    data: Path, tmp_path: Path
) -> None:
    more = (
        f"datasets.webvid.build_info.valid={{anno_dir: {data}/csv}}",
        *("run.valid_splits=[valid]", "run.max_epoch=3", "run.iters_per_epoch=3"),
        *("run.keep_last=1", "run.answer_max_new_tokens=8"),
    )
    trains = runner(VISION_1, data, tmp_path, *more)
    assert trains.train()
    results = [line for line in log_lines(trains.state.folder) if line.get("split") == "valid"]
    assert [line["step"] for line in results] == [3, 6, 9]
    text = (trains.state.folder / "answers/valid-step-000009.jsonl").read_text()
    answers = [json.loads(line) for line in text.splitlines()]
    assert [answer["item_id"] for answer in answers] == [f"p/{i}.mp4" for i in range(4)]
    assert answers[0]["reference"] == "a red square 0"
    best = min(results, key=lambda line: line["loss"])["step"]
    kept = sorted(path.name for path in (trains.state.folder / "checkpoints").iterdir())
    assert kept == sorted({f"step-{int(best):06d}", "step-000009"})
    assert trains.components.task.model.training, "goes on training after an evaluation"

    evaluated = runner(
        VISION_1,
        data,
        tmp_path / "alone",
        *more,
        "run.evaluate=true",
        f"model.ckpt={trains.state.checkpoint}/branch.safetensors",
    )
    (result,) = evaluated.evaluate_all()
    assert result["loss"] == pytest.approx(results[-1]["loss"], abs=1e-6)
    assert result["num_answers"] == 4
    assert not (evaluated.state.folder / "checkpoints").exists()


def test_evaluated_loss_is_the_mean_over_tokens(data: Path, tmp_path: Path) -> None:
    valid = f"datasets.webvid.build_info.valid={{anno_dir: {data}/csv}}"
    more = (valid, "run.valid_splits=[valid]", "run.evaluate=true", "run.max_answers=0")
    results = []
    for size in (1, 3, 4):
        results += runner(
            VISION_1, data, tmp_path / str(size), *more, f"run.batch_size_eval={size}"
        ).evaluate_all()
    assert [r["loss"] for r in results] == pytest.approx([results[0]["loss"]] * 3, abs=1e-5)
    assert "exact_match" not in results[0]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("run.evaluate=true",), "valid_splits and run.test_splits are empty"),
        (("run.valid_splits=[valid]",), "no data set has a valid split"),
        (("run.valid_splits=[vaild]",), r"run\.valid_splits: unknown split 'vaild'; did you mean"),
        (("run.device=meta",), "meta has no weights"),
        (("model.frozen_video_Qformer=true",), "no other branch trains"),
        (("model.prompt_path=nowhere.txt",), "model.prompt_path: nowhere.txt cannot be read"),
    ],
)
def test_what_cannot_be_run_is_said_before_the_first_step(
    more: tuple[str, ...], message: str, data: Path, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        runner(VISION_1, data, tmp_path, *more)
    assert list(tmp_path.iterdir()) == [], "no folder of a run that never began"


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows[:-1],
        lambda rows: [*rows[:-2], rows[-1], rows[-2]],
        lambda rows: [*rows[:-1], rows[-1] + " more"],
    ],
)
def test_run_is_not_resumed_on_a_changed_annotation(
    data: Path, tmp_path: Path, change: Callable[[list[str]], list[str]]
) -> None:
    header, *rows = (data / "csv/0.csv").read_text().splitlines()
    table = tmp_path / "clips.csv"
    table.write_text("\n".join([header, *rows]))
    options = [f"datasets.webvid.build_info.anno_dir={table}", "run.iters_per_epoch=1"]
    assert runner(VISION_1, data, tmp_path / "run", *options).train()
    options += ["run.resume_ckpt_path=latest", "run.max_epoch=2"]
    table.write_text("\n".join([header, *change(rows)]))
    with pytest.raises(ConfigError, match=r"datasets\.webvid \(annotation\): '4 items \("):
        runner(VISION_1, data, tmp_path / "run", *options)
    table.write_text("\n".join([header, *rows]))
    assert runner(VISION_1, data, tmp_path / "run", *options).train()


def test_refused_resumption_leaves_the_folder_as_it_was(data: Path, tmp_path: Path) -> None:
    first = runner(VISION_1, data, tmp_path, "run.iters_per_epoch=1")
    first.train()
    before = sorted(path.name for path in first.state.folder.iterdir())
    with pytest.raises(ConfigError, match=r"run\.seed"):
        runner(VISION_1, data, tmp_path, "run.resume_ckpt_path=latest", "run.seed=1")
    assert sorted(path.name for path in first.state.folder.iterdir()) == before


def hang(*_: object) -> None:
    time.sleep(60)


def test_hung_data_worker_ends_the_run_with_the_file(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CaptionItems, "load", hang)
    more = ("run.num_workers=1", "run.data_timeout=1", "datasets.cc_sbu_align.sample_ratio=0.001")
    trains = runner(VISION_1, data, tmp_path, *more)
    file = rf"{data}/clips/p/\d\.mp4"
    message = rf"^no batch came within run\.data_timeout \(1 s\).*worker 0: webvid {file}, for \d s"
    with pytest.raises(LocalError, match=message):
        trains.train()


def test_unreadable_item_does_not_weigh_in_an_evaluation(data: Path, tmp_path: Path) -> None:
    rows = (data / "csv/0.csv").read_text().splitlines()
    results = []
    for name, extra in (("whole", []), ("broken", ["gone,p,a long caption of a missing clip"])):
        table = tmp_path / f"{name}.csv"
        table.write_text("\n".join([*rows[:3], *extra, *rows[3:]]) + "\n")
        more = (
            f"datasets.webvid.build_info.valid={{anno_dir: {table}}}",
            *("run.valid_splits=[valid]", "run.evaluate=true", "run.batch_size_eval=1"),
            "run.answer_max_new_tokens=4",
        )
        evaluated = runner(VISION_1, data, tmp_path / name, *more)
        results += evaluated.evaluate_all()
    assert results[1].pop("num_bad_items") == 1
    losses = [result.pop("loss") for result in results]
    assert results[1] == results[0]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)  # the sums are rounded
    (line,) = map(json.loads, (evaluated.state.folder / "bad_items.jsonl").read_text().splitlines())
    assert line["item_id"] == "p/gone.mp4"


def test_recomputed_activations_train_the_same(data: Path, tmp_path: Path) -> None:
    runs = []
    for value in ("false", "true"):
        trains = runner(
            VISION_1,
            data,
            tmp_path / value,
            f"model.use_grad_checkpoint={value}",
            "run.iters_per_epoch=3",
        )
        trains.train()
        runs.append(trains.state.folder)
    assert losses(runs[0]) == pytest.approx(losses(runs[1]), abs=1e-6)


def test_error_of_the_user_is_one_line(data: Path, tmp_path: Path) -> None:
    options = [*tiny_options(*VISION_1, data, tmp_path), "run.sed=3"]
    text = train(config_path(*VISION_1), options, status=1).stderr
    assert text.startswith("train.py: error: ")
    assert "did you mean 'seed'" in text
    assert text.count("\n") == 1


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--help"], "--cfg-path"),
        (["--cfg-path", "eval_configs/tiny.yaml"], "train.py: error: model.frozen_video_Qformer"),
    ],
)
def test_what_needs_no_torch_does_not_wait_for_it(words: list[str], told: str) -> None:
    command = [sys.executable, "-X", "importtime", str(ROOT / "train.py"), *words]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert told in result.stdout + result.stderr
    assert "video_llama.types" in result.stderr
    assert "torch" not in {line.split("|")[-1].strip() for line in result.stderr.splitlines()}


@pytest.mark.slow
def test_sharded_language_model_trains_and_evaluates_the_same(data: Path, tmp_path: Path) -> None:
    (data / "csv3").mkdir()
    rows = (data / "csv/0.csv").read_text().splitlines()[:4]
    (data / "csv3/0.csv").write_text("\n".join(rows) + "\n")
    more = (
        *("run.iters_per_epoch=4", "run.batch_size_eval=1", "run.valid_splits=[valid]"),
        f"datasets.webvid.build_info.valid={{anno_dir: {data}/csv3}}",
    )
    logs = []
    for value in ("false", "true"):
        options = [*tiny_options(*VISION_1, data, tmp_path / value), *more, f"run.fsdp={value}"]
        train(config_path(*VISION_1), options, processes=2)
        logs.append([line["loss"] for line in log_lines(run_folder(tmp_path / value))])
    assert len(logs[0]) == 5
    assert logs[1] == pytest.approx(logs[0], abs=1e-5)
