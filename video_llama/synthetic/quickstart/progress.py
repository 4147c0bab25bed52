"""Progress bars of trainings that write to log files, and trainings at the same time."""

from __future__ import annotations

import contextlib
import json
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from tqdm import tqdm

from video_llama.config import load_config
from video_llama.models.settings import Branch
from video_llama.synthetic.stages import STAGES, Launch, Stage, Trained

TrainStage = Callable[[Stage, Path | None], Trained]
"""Trains a stage from a branch, or from random values where that is None."""

TrainAll = Callable[[TrainStage], dict[Stage, Trained]]

_EVERY = 1.0
"""Seconds from one look at the logs to the next."""


@contextlib.contextmanager
def show_training(out: Path, launch: Launch, *, together: bool) -> Iterator[TrainAll]:
    """Show a bar for each stage while the block lasts.

    Args:
        out: where the stages put their folders.
        launch: how they are run.
        together: the branches at the same time rather than one after the other.

    Yields:
        A function that trains all stages with a function that trains one.
    """
    bars = {
        stage: tqdm(total=_num_steps(stage, launch), desc=stage.name, unit="step", position=place)
        for place, stage in enumerate(STAGES)
    }
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(out, bars, over), daemon=True)
    watcher.start()
    try:
        yield lambda train_stage: _train_all(train_stage, together=together)
    finally:
        over.set()
        watcher.join()
        for bar in bars.values():
            bar.close()


def _train_all(train_stage: TrainStage, *, together: bool) -> dict[Stage, Trained]:
    branches: list[Branch] = list(dict.fromkeys(stage.branch for stage in STAGES))
    with ThreadPoolExecutor(len(branches) if together else 1) as pool:
        ended = [pool.submit(_train_branch, branch, train_stage) for branch in branches]
        return {stage: trained for future in ended for stage, trained in future.result().items()}


def _train_branch(branch: Branch, train_stage: TrainStage) -> dict[Stage, Trained]:
    trained: dict[Stage, Trained] = {}
    start: Path | None = None
    for stage in (stage for stage in STAGES if stage.branch == branch):
        trained[stage] = train_stage(stage, start)
        start = trained[stage].branch_path
    return trained


def _watch(out: Path, bars: dict[Stage, tqdm[None]], over: threading.Event) -> None:
    """Move the bars to where the logs are, once more when it is over."""
    while not over.wait(_EVERY):
        _move(out, bars)
    _move(out, bars)


def _move(out: Path, bars: dict[Stage, tqdm[None]]) -> None:
    for stage, bar in bars.items():
        done = steps_done(out / stage.name)
        if done != bar.n or sys.stderr.isatty():  # a file gets no line a second
            bar.n = done
            bar.refresh()


def steps_done(folder: Path) -> int:
    """Steps that the latest run in the folder of a stage has logged.

    Args:
        folder: of the stage; it need not exist.
    """
    logs = sorted(folder.glob("*/log.jsonl"), key=lambda path: path.stat().st_mtime)
    lines = logs[-1].read_text("utf-8").splitlines() if logs else []
    for line in reversed(lines):
        with contextlib.suppress(json.JSONDecodeError):  # a line that is being written
            return int(json.loads(line)["step"])
    return 0


def _num_steps(stage: Stage, launch: Launch) -> int:
    run = load_config(stage.config_path, launch.options_of(stage)).run
    return (run.max_epoch or 1) * (run.iters_per_epoch or 0)
