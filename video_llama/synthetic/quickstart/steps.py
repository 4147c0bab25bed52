"""Progress bars of trainings that write to log files, and trainings at the same time.

The steps from nothing to scores. What is finished is skipped when they are taken again.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from tqdm import tqdm

from video_llama.apps.evaluate.scores import Score, score_table
from video_llama.common.io import atomic_write, default_config_path
from video_llama.config.load import load_config
from video_llama.models.settings import Branch
from video_llama.synthetic.items import World
from video_llama.synthetic.quickstart.stages import (
    STAGES,
    Launch,
    Stage,
    Trained,
    answering_options,
    run_stage,
)
from video_llama.synthetic.splits import Split
from video_llama.synthetic.write import plan
from video_llama.types import VideoLlamaError

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


QUESTION = "What do you see?"
"""What is asked about a clip that nothing was trained on."""


class StepError(VideoLlamaError):
    """A step has failed; says how to repeat it."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What is done, and how much of it.

    Attributes:
        out: gets everything.
        fast: no training; the branches that ship with the package are used.
        seed: of the world and of the trainings.
        processes: at once.
        num_clips: of the training split; the test has half as many.
        limit: most questions of a type.
        steps_scale: factor on the length of the trainings.
        side_by_side: both branches at once, one process each, instead of one after the other.
        options: `section.key=value` each, for every training and for the answers.
    """

    out: Path
    fast: bool = False
    seed: int = 0
    processes: int = 2
    num_clips: int = 2000
    limit: int = 42
    steps_scale: float = 1.0
    side_by_side: bool = False
    options: Sequence[str] = ()

    @property
    def splits(self) -> tuple[Split, ...]:
        """Splits of the world that are needed."""
        return ("test",) if self.fast else ("train", "test")

    @property
    def data(self) -> Path:
        """Folder of the world."""
        return self.out / ("clips" if self.fast else "data")

    @property
    def config_path(self) -> Path:
        """The YAML that answers."""
        return default_config_path() if self.fast else self.out / "model.yaml"

    def report(self, name: str) -> Path:
        """A file of results; those of shipped weights lie beside those of trained ones."""
        return self.out / (f"fast_{name}" if self.fast else name)

    @property
    def launch(self) -> Launch:
        """How the trainings are run."""
        features = (self.out / "features").absolute()
        given = [f"run.feature_cache={features}", f"run.seed={self.seed}", *self.options]
        return Launch(
            data=self.data,
            options=given,
            steps_scale=self.steps_scale,
            processes=1 if self.side_by_side else self.processes,
        )


@dataclass
class Quickstart:
    """Carries a plan out, step by step.

    Attributes:
        plan: what is done.
        console: what is said goes there.
        times: seconds of each step that was not skipped.
    """

    plan: Plan
    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    times: dict[str, float] = field(default_factory=dict)

    def run(self) -> None:
        """All steps, then the table, the times and what to try next.

        Raises:
            VideoLlamaError: a step has failed.
        """
        self.plan.out.mkdir(parents=True, exist_ok=True)
        self._step("data: clips, pictures, sounds, questions", self.make_data)
        if not self.plan.fast:
            self._step("training: four stages", self.train)
        self._step("scores: held-out combinations, with controls", self.score)
        self._step("a question about a held-out clip", self.ask)
        self.report()

    def make_data(self) -> None:
        """Write the world, unless it is there.

        Raises:
            StepError: it cannot be written.
        """
        plan = self.plan
        if _is_written(plan):
            self._say(f"  is there already: {plan.data}")
            return
        splits = [word for split in plan.splits for word in ("--split", split)]
        numbers = ["--num-clips", str(plan.num_clips), "--seed", str(plan.seed)]
        where = ["--out", str(plan.data), "--workers", str(plan.processes)]
        _program(["data", "synth", *where, *numbers, *splits])

    def train(self) -> None:
        """Train what is not trained yet, and write the YAML that answers with it.

        Raises:
            VideoLlamaError: a training has failed; the message ends with its log's last lines.
        """
        plan = self.plan
        logs = plan.out / "logs"
        with show_training(plan.out, plan.launch, together=plan.side_by_side) as branches:
            trained = branches(lambda stage, start: self._train_stage(stage, start, logs))
        for stage, result in trained.items():
            self._say(f"  {stage.name}: {result.seconds:.0f} s, loss {_last(result.loss)}")
            self.times[f"  {stage.name}"] = result.seconds
        ended = {stage.branch: result.branch_path for stage, result in trained.items()}
        options = [*answering_options(plan.launch, ended), *plan.options]
        with atomic_write(plan.config_path) as path:
            path.write_text(_answering_yaml(options), "utf-8")

    def _train_stage(self, stage: Stage, start: Path | None, logs: Path) -> Trained:
        size = load_config(stage.config_path, self.plan.options).run.batch_size_train
        # Several processes share the batch of one: the steps stay what they are.
        size = max(1, size // self.plan.launch.processes)
        return run_stage(
            stage,
            self.plan.launch,
            out=self.plan.out,
            start=start,
            options=[f"run.batch_size_train={size}"],
            log=logs / f"{stage.name}.log",
        )

    def score(self) -> None:
        """Score the answers, unless the same was scored before.

        Raises:
            StepError: that has failed.
        """
        plan = self.plan
        files = {name: plan.report(name) for name in ("scores.json", "scores.png", "samples.html")}
        options = ["--limit", str(plan.limit), "--seed", str(plan.seed)]
        words = [
            *("evaluate", str(plan.data / "test/questions.json"), *options),
            *("--cfg-path", str(plan.config_path), "--out", str(files["scores.json"])),
            *("--picture", str(files["scores.png"]), "--page", str(files["samples.html"])),
        ]
        made_of = shlex.join(words) + "\n" + plan.config_path.read_text("utf-8")
        mark = plan.report("scores.made_of")
        known = mark.read_text("utf-8") if mark.exists() else ""
        if known == made_of and all(path.exists() for path in files.values()):
            self._say(f"  are there already: {files['scores.json']}")
            return
        mark.unlink(missing_ok=True)
        _program(words)
        mark.write_text(made_of, "utf-8")

    def ask(self) -> None:
        """Ask one question, and say what the right answer is.

        Raises:
            StepError: that has failed.
        """
        clip, truth = _clip_to_ask_about(self.plan)
        cfg = ["--cfg-path", str(self.plan.config_path)]
        said = _program(["ask", str(clip), QUESTION, *cfg, "--max-new-tokens", "12"])
        self._say(f"  {clip}\n  {QUESTION}\n  answer: {said.strip()}\n  truth:  {truth}")

    def report(self) -> None:
        """The table, the times, and the next three commands to try."""
        plan = self.plan
        found = json.loads(plan.report("scores.json").read_text("utf-8"))["scores"]
        names = ("type", "condition", "right", "count", "chance")
        scores = [Score(**{name: entry[name] for name in names}) for entry in found]
        width = self.console.width if self.console.is_terminal else None
        self._say("\nRight answers in percent (95 % interval), held-out combinations\n")
        self._say(score_table(scores, width=width))
        self._say("\nSeconds\n")
        for name, seconds in self.times.items():
            self._say(f"{seconds:7.0f}  {name}")
        clip, _ = _clip_to_ask_about(plan)
        cfg = "" if plan.fast else f" --cfg-path {shlex.quote(str(plan.config_path))}"
        self._say(f"\nPicture and samples: {plan.report('scores.png')}, ", end="")
        self._say(f"{plan.report('samples.html')}\n\nTry next:\n")
        quoted = shlex.quote(str(clip))
        self._say(f'  video-llama ask {quoted} "What do you hear?"{cfg}')
        self._say(f"  video-llama chat {quoted}{cfg}")
        self._say(f"  video-llama demo{cfg}")

    def _step(self, name: str, work: Callable[[], None]) -> None:
        self._say(f"\n{name}")
        begin = time.monotonic()
        work()
        self.times[name] = time.monotonic() - begin
        self._say(f"  {self.times[name]:.0f} s")

    def _say(self, text: str, end: str = "\n") -> None:
        self.console.print(text, markup=False, end=end)


def _program(words: Sequence[str]) -> str:
    """What a command of video-llama prints; its progress goes to the terminal.

    Raises:
        StepError: it has failed, which it has said itself.
    """
    command = [sys.executable, "-m", "video_llama.apps.cli.main", *words]
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    result = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env={**threads, **os.environ}
    )
    if result.returncode:
        again = shlex.join(["video-llama", *words])
        raise StepError(f"it ended with status {result.returncode}; to repeat this step:\n{again}")
    return result.stdout


def _is_written(wanted: Plan) -> bool:
    """Whether the world of a plan lies in its folder."""
    path = wanted.data / "world.json"
    if not path.exists():
        return False
    found = json.loads(path.read_text("utf-8"))
    items = plan(wanted.num_clips, World(seed=wanted.seed), splits=wanted.splits)
    counts = {f"{split}/{source}": len(several) for (split, source), several in items.items()}
    return bool(found["world"]["seed"] == wanted.seed and found["items"] == counts)


def _answering_yaml(options: Sequence[str]) -> str:
    """The default configuration with some settings changed."""
    values: dict[str, Any] = yaml.safe_load(default_config_path().read_text("utf-8"))
    for option in options:
        name, _, value = option.partition("=")
        section, *between, last = name.split(".")
        place = values.setdefault(section, {})
        for key in between:
            place = place.setdefault(key, {})
        place[last] = yaml.safe_load(value)
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text


def _clip_to_ask_about(plan: Plan) -> tuple[Path, str]:
    """A held-out clip of one thing, and what is seen in it."""
    path = plan.data / "test/questions.json"
    for entry in json.loads(path.read_text("utf-8")):
        if entry["type"] == "see" and not entry["contradictory"]:
            return path.parent / entry["path"], entry["answer"]
    raise StepError(f"{path}: it has no question of type see; more clips are needed")


def _last(loss: Sequence[tuple[int, float]]) -> str:
    return f"{loss[-1][1]:.2f}" if loss else "unknown"
