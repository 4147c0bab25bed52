"""Runs that are killed or asked to stop go on as if nothing had happened, to the last bit."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.reference import ROOT
from tests.training.training_data import (
    STAGE_1,
    STAGE_2,
    branch,
    command,
    config_path,
    environment,
    log_lines,
    run_folder,
    tiny_options,
    train,
    write_data,
)
from video_llama.config.build_run import build_runner
from video_llama.config.load import load_config
from video_llama.datasets.base import SplitInfo
from video_llama.datasets.cc_sbu_align import CcSbuAlignSettings
from video_llama.datasets.prepare.pack import pack
from video_llama.datasets.webvid import WebvidSettings
from video_llama.runners.safeguards import SAME_REQUEST

NUM_STEPS = 40
VISION_1 = ("visionbranch", STAGE_1)

Process = subprocess.Popen[str]


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data") / "set", num_items=6)


_STARTED: list[Process] = []


@pytest.fixture(autouse=True)
def nothing_is_left_running() -> Iterator[None]:
    """A run that a failed test leaves behind would slow down all others."""
    yield
    while _STARTED:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(_STARTED.pop().pid, signal.SIGKILL)


def start(config: Path, options: Sequence[str], *, processes: int) -> Process:
    process = subprocess.Popen(
        command(config, options, processes=processes),
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    _STARTED.append(process)
    return process


def wait_for_step(process: Process, output: Path, step: int) -> None:
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline:
        assert process.poll() is None, f"ended before step {step}: {process.communicate()[0]}"
        for log in output.glob("*/log.jsonl"):
            done = [line["step"] for line in complete_lines(log)]
            if done and max(done) >= step:
                return
        time.sleep(0.01)
    raise TimeoutError(f"step {step} was not reached")


def wait_for_file(process: Process, output: Path, pattern: str) -> None:
    deadline = time.monotonic() + 90
    while not list(output.glob(pattern)):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.05)


def complete_lines(log: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in log.read_text().splitlines() if line.endswith("}")]


def kill_all(process: Process) -> None:
    """SIGKILL to the launcher and to everything that it has started, at once."""
    everything = [process.pid, *(c.pid for c in psutil.Process(process.pid).children(True))]
    for pid in everything:
        os.kill(pid, signal.SIGKILL)
    process.communicate()


def workers(process: Process, processes: int) -> list[int]:
    """The processes that train."""
    if not processes:
        return [process.pid]
    return [child.pid for child in psutil.Process(process.pid).children()]


def options_for(branch: str, stage: str, data: Path, output: Path, *more: str) -> list[str]:
    return [
        *tiny_options(branch, stage, data, output),
        *("run.iters_per_epoch=20", "run.max_epoch=2", "run.save_every=5"),
        *more,
    ]


def packed(data: Path, folder: Path) -> list[str]:
    """Options that read the two data sets of stage 1 from tars."""
    sources = {
        "webvid": WebvidSettings().read(
            SplitInfo(anno_dir=str(data / "csv"), videos_dir=str(data / "clips"))
        ),
        "cc_sbu_align": CcSbuAlignSettings().read(SplitInfo(storage=str(data / "align"))),
    }
    options = []
    for name, records in sources.items():
        storage = pack(name, records, folder / name, samples_per_shard=4).storage
        options.append(f"datasets.{name}.build_info={{storage: '{storage}'}}")
    return options


def kill_at_random_steps(
    config: Path, resume: list[str], output: Path, steps: Sequence[int], *, processes: int
) -> None:
    for step in steps:
        process = start(config, resume, processes=processes)
        wait_for_step(process, output, step)
        kill_all(process)


def test_run_on_shards_that_is_killed_ends_with_the_same_bits(data: Path, tmp_path: Path) -> None:
    config, num_steps = config_path(*VISION_1), 24
    shards = packed(data, tmp_path / "tars")
    more = (*shards, "run.save_every=3", f"run.iters_per_epoch={num_steps}", "run.max_epoch=1")
    options = options_for(*VISION_1, data, tmp_path / "whole", *more)
    assert build_runner(load_config(config, options), name="whole").train()

    killed = tmp_path / "killed"
    resume = options_for(*VISION_1, data, killed, *more, "run.resume_ckpt_path=latest")
    steps = sorted(random.Random(7).sample(range(6, num_steps - 4), 2))
    workers = "run.num_workers=2"
    kill_at_random_steps(config, [*resume, workers], killed, steps, processes=0)
    last = build_runner(load_config(config, resume), name="last")
    assert 3 <= last.state.step < num_steps, "it goes on from a checkpoint"
    assert last.train()
    whole, mended = run_folder(tmp_path / "whole"), run_folder(killed)
    assert log_lines(mended) == log_lines(whole)
    assert branch(mended, num_steps) == branch(whole, num_steps)


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize(
    ("case", "processes", "more"),
    [
        (VISION_1, 0, ("run.num_workers=1",)),
        (("audiobranch", STAGE_2), 0, ("run.accum_grad_iters=4",)),
        (VISION_1, 2, ("run.accum_grad_iters=2",)),
        (("visionbranch", STAGE_2), 2, ("run.num_workers=1",)),
        (VISION_1, 2, ("run.num_workers=1", "shards")),
    ],
)
def test_killed_run_ends_with_the_same_bits(
    case: tuple[str, str], processes: int, more: tuple[str, ...], data: Path, tmp_path: Path
) -> None:
    config = config_path(*case)
    if "shards" in more:
        more = (*more[:-1], *packed(data, tmp_path / "tars"))
    whole = tmp_path / "whole"
    train(config, options_for(*case, data, whole, *more), processes=processes)

    killed = tmp_path / "killed"
    resume = options_for(*case, data, killed, *more, "run.resume_ckpt_path=latest")
    # From step 8 on there is a checkpoint to go on with, so that all happens in one folder.
    steps = sorted(random.Random(repr(case)).sample(range(8, NUM_STEPS - 4), 3))
    kill_at_random_steps(config, resume, killed, steps, processes=processes)
    train(config, [*resume, "run.num_workers=2"], processes=processes)

    assert log_lines(run_folder(whole))[-1]["step"] == NUM_STEPS
    assert log_lines(run_folder(killed)) == log_lines(run_folder(whole))
    assert branch(run_folder(killed), NUM_STEPS) == branch(run_folder(whole), NUM_STEPS)


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize(
    ("number", "processes"), [(signal.SIGTERM, 0), (signal.SIGINT, 0), (signal.SIGTERM, 2)]
)
def test_signal_saves_after_the_step_and_says_how_to_go_on(
    number: signal.Signals, processes: int, data: Path, tmp_path: Path
) -> None:
    config, output = config_path(*VISION_1), tmp_path / "runs"
    options = options_for(*VISION_1, data, output, "run.max_epoch=10", "run.save_every=0")
    process = start(config, options, processes=processes)
    wait_for_step(process, output, 3)
    os.kill(workers(process, processes)[-1], number)  # one of them is enough
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    (checkpoint,) = output.glob("*/checkpoints/step-*")
    step = log_lines(run_folder(output))[-1]["step"]
    assert checkpoint.name == f"step-{int(step):06d}", "no finished step is lost"
    (resume,) = re.findall(r"^(?:python|torchrun) .*", text, re.MULTILINE)
    assert f"run.resume_ckpt_path={checkpoint}" in resume
    assert resume.startswith(f"torchrun --nproc_per_node={processes}" if processes else "python")

    words = [sys.executable if word == "python" else word for word in shlex.split(resume)]
    if processes:
        words[:1] = [sys.executable, "-m", "torch.distributed.run"]
    shorter = [*words, "run.max_epoch=1", f"run.iters_per_epoch={int(step) + 2}"]
    done = subprocess.run(
        shorter, env=environment(), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert log_lines(run_folder(output))[-1]["step"] == step + 2


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_signal_to_torchrun_and_its_processes_loses_no_step(data: Path, tmp_path: Path) -> None:
    """As a batch system sends it to all; torchrun passes it on, so that it comes twice."""
    output = tmp_path / "runs"
    options = options_for(*VISION_1, data, output, "run.max_epoch=10", "run.save_every=0")
    process = start(config_path(*VISION_1), options, processes=2)
    wait_for_step(process, output, 3)
    for pid in (process.pid, *workers(process, 2)):
        os.kill(pid, signal.SIGTERM)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 1, "torchrun's own status, whatever its processes did"
    assert "run.resume_ckpt_path=" in text
    (checkpoint,) = output.glob("*/checkpoints/step-*")
    step = log_lines(run_folder(output))[-1]["step"]
    assert checkpoint.name == f"step-{int(step):06d}"


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_to_the_whole_group_spares_the_data_workers(
    number: signal.Signals, data: Path, tmp_path: Path
) -> None:
    output = tmp_path / "runs"
    more = ("run.max_epoch=10", "run.save_every=0", "run.num_workers=2")
    options = options_for(*VISION_1, data, output, *more)
    process = start(config_path(*VISION_1), options, processes=0)
    wait_for_step(process, output, 3)
    os.killpg(process.pid, number)  # what Ctrl-C in a terminal does
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 0, text
    assert "Traceback" not in text
    assert len(list(output.glob("*/checkpoints/step-*"))) == 1


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("before", [signal.default_int_handler, signal.SIG_IGN])
def test_second_interrupt_ends_the_run_at_once(before: Any, data: Path, tmp_path: Path) -> None:
    """Also of a run that a script has put in the background, where Ctrl-C is ignored at first."""
    output = tmp_path / "runs"
    # So many steps per update that the first one alone would not end the run soon.
    more = ("run.accum_grad_iters=60000", "run.iters_per_epoch=60000", "run.save_every=0")
    options = [*tiny_options(*VISION_1, data, output), *more]
    inherited = signal.signal(signal.SIGINT, before)
    try:
        process = start(config_path(*VISION_1), options, processes=0)
    finally:
        signal.signal(signal.SIGINT, inherited)
    wait_for_file(process, output, "*/tensorboard")
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    process.send_signal(signal.SIGINT)  # of the same request
    time.sleep(SAME_REQUEST + 1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode not in (0, None)
    assert list(output.glob("*/checkpoints/*")) == []


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_error_of_one_process_is_told_once_and_ends_all(data: Path, tmp_path: Path) -> None:
    case = ("visionbranch", STAGE_2)
    talks = json.loads((data / "talk.json").read_text())
    talks[0]["QA"][0]["q"] = "word " * 2000
    (tmp_path / "talk.json").write_text(json.dumps(talks))
    annotation = f"datasets.webvid_instruct.build_info.anno_dir={tmp_path}/talk.json"
    options = options_for(*case, data, tmp_path / "runs", annotation, "run.batch_size_train=1")
    options += ["run.num_workers=1"]
    text = train(config_path(*case), options, processes=2, status=1).stderr
    (line,) = re.findall(r"^train\.py: error: rank \d: .*", text, re.MULTILINE)
    assert "webvid_instruct" in line
    assert "video_llama/runners/runner.py" not in text, "no traceback"


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_mistake_in_the_code_shows_its_traceback_and_ends_all(data: Path, tmp_path: Path) -> None:
    """Also in the middle of training, where torch has put its own hook before ours."""
    options = options_for(*VISION_1, data, tmp_path / "runs")
    change = (
        "from video_llama.runners.task import TextFromMedia\n"
        "TextFromMedia.train_step = lambda *args: 1 / 0\n"
    )
    text = run_changed(change, options, tmp_path / "broken.py")
    assert "ZeroDivisionError: division by zero" in text
    assert "_forward_backward" in text


@pytest.mark.slow
@pytest.mark.timeout(200)
def test_hung_data_worker_of_one_process_is_told_and_ends_all(data: Path, tmp_path: Path) -> None:
    more = ("run.num_workers=1", "run.data_timeout=3", "datasets.cc_sbu_align.sample_ratio=0.001")
    options = options_for(*VISION_1, data, tmp_path / "runs", *more)
    change = (
        "import os, time\n"
        "from video_llama.datasets.items import CaptionItems\n"
        "load = CaptionItems.load\n"
        "def hang(*args):\n"
        "    time.sleep(60 if os.environ['RANK'] == '1' else 0)\n"
        "    return load(*args)\n"
        "CaptionItems.load = hang\n"
    )
    text = run_changed(change, options, tmp_path / "hung.py")
    (line,) = re.findall(r"^train\.py: error: (.*)", text, re.MULTILINE)
    assert line.startswith("rank 1: no batch came within run.data_timeout (3 s)")
    assert re.search(rf"worker 0: webvid {data}/clips/p/\d\.mp4, for \d s", line)


@pytest.mark.slow
@pytest.mark.timeout(200)
@pytest.mark.parametrize("place", ["log", "log and stderr"])
def test_read_only_disk_of_one_process_ends_all(place: str, data: Path, tmp_path: Path) -> None:
    options = options_for(*VISION_1, data, tmp_path / "runs")
    change = (
        "import errno, os\n"
        "from video_llama.runners.hooks import JsonLog\n"
        "class ReadOnly:\n"
        "    def write(self, *_):\n"
        "        raise OSError(errno.EROFS, 'Read-only file system')\n"
        "    flush = close = write\n"
        "def after_update(self, run):\n"
        "    if run.step == 7 and self._file is not None:\n"
        "        self._file = ReadOnly()\n"
        f"        if {place == 'log and stderr'}:\n"
        "            sys.stderr = sys.__stderr__ = ReadOnly()\n"
        "    log(self, run)\n"
        "log, JsonLog.after_update = JsonLog.after_update, after_update\n"
    )
    text = run_changed(change, options, tmp_path / "read_only.py")
    assert "JsonLog" not in text, "no traceback"
    if place == "log":
        (line,) = re.findall(r"^train\.py: error: (.*)", text, re.MULTILINE)
        assert line.startswith(f"{tmp_path}/runs/")
        assert "the run cannot write there any more (Read-only file system)" in line
    (checkpoint,) = (tmp_path / "runs").glob("*/checkpoints/step-*")
    assert checkpoint.name == "step-000005"


def run_changed(change: str, options: list[str], path: Path) -> str:
    """What two processes of a changed `train.py` say, which must fail."""
    path.write_text(
        f"import runpy, sys, torch\n{change}sys.argv = ['train.py', *sys.argv[1:]]\n"
        f"runpy.run_path({str(ROOT / 'train.py')!r}, run_name='__main__')\n"
    )
    words = command(config_path(*VISION_1), options, processes=2)
    words[words.index(str(ROOT / "train.py"))] = str(path)
    result = subprocess.run(
        words, env=environment(), capture_output=True, text=True, timeout=100, check=False
    )
    assert result.returncode == 1
    return result.stderr
