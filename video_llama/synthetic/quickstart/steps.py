"""The steps of the quickstart: data, training, scores, a question, a report.

What is finished is skipped when they are run again.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from omegaconf import OmegaConf
from rich.console import Console

from video_llama.apps.evaluate.scores import Score, score_table
from video_llama.common.io import atomic_write, default_config_path
from video_llama.config.load import load_config
from video_llama.synthetic.media import World
from video_llama.synthetic.quickstart.stages import (
    Launch,
    Stage,
    Trained,
    answering_options,
    progress_bars,
    run_stage,
    train_all,
)
from video_llama.synthetic.splits import Split
from video_llama.synthetic.write import plan
from video_llama.types import VideoLlamaError

QUESTION = "What do you see?"
"""Asked about a held-out clip."""


class StepError(VideoLlamaError):
    """A step that has failed; says how to repeat it."""


@dataclass(frozen=True, kw_only=True)
class QuickstartOptions:
    """What is done, and how much of it."""

    out: Path
    """Folder of all results."""
    fast: bool = False
    """Whether the branches that ship with the package are used, without a training."""
    seed: int = 0
    """Seed of the world and of the trainings."""
    processes: int = 2
    """Processes at the same time."""
    num_clips: int = 2000
    """Clips of the training split; the test split has half as many."""
    limit: int = 42
    """Most questions of a type."""
    steps_scale: float = 1.0
    """Factor on the length of the trainings."""
    side_by_side: bool = False
    """Whether both branches are trained at once, one process each, instead of in turn."""
    overrides: Sequence[str] = ()
    """`section.key=value` each, for every training and for the answers."""

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
        """Return the path of a result; results of shipped weights have names of their own."""
        return self.out / (f"fast_{name}" if self.fast else name)

    @property
    def launch(self) -> Launch:
        """How the trainings are run."""
        features = (self.out / "features").absolute()
        given = [f"run.feature_cache={features}", f"run.seed={self.seed}", *self.overrides]
        return Launch(
            data=self.data,
            options=given,
            steps_scale=self.steps_scale,
            processes=1 if self.side_by_side else self.processes,
        )


@dataclass
class Quickstart:
    """Runs the steps.

    Attributes:
        times: seconds of each step.
    """

    options: QuickstartOptions
    console: Console = field(default_factory=lambda: Console(highlight=False, soft_wrap=True))
    times: dict[str, float] = field(default_factory=dict)

    def run(self) -> None:
        """Run all steps, then print the table, the times and what to try next.

        Raises:
            VideoLlamaError: a step has failed.
        """
        # Each step is skipped or repeated by itself: after a failure the same command goes on.
        self.options.out.mkdir(parents=True, exist_ok=True)
        self._step("data: clips, pictures, sounds, questions", self.make_data)
        if not self.options.fast:
            self._step("training: four stages", self.train)
        self._step("scores: held-out combinations, with controls", self.score)
        self._step("a question about a held-out clip", self.ask)
        self.report()

    def make_data(self) -> None:
        """Write the world, unless it is there."""
        wanted = self.options
        if _is_written(wanted):
            self._say(f"  is there already: {wanted.data}")
            return
        # Through the program and not its functions: that is what the quickstart shows, and a step
        # that crashes leaves this process alive to say how to repeat it.
        splits = [word for split in wanted.splits for word in ("--split", split)]
        numbers = ["--num-clips", str(wanted.num_clips), "--seed", str(wanted.seed)]
        where = ["--out", str(wanted.data), "--workers", str(wanted.processes)]
        _program(["data", "synth", *where, *numbers, *splits])

    def train(self) -> None:
        """Train what is not trained yet, and write the YAML that answers with it."""
        wanted = self.options
        logs = wanted.out / "logs"
        with progress_bars(wanted.out, wanted.launch):
            trained = train_all(
                lambda stage, start: self._train_stage(stage, start, logs),
                side_by_side=wanted.side_by_side,
            )
        # Only now: a line between the progress bars would break them.
        for stage, result in trained.items():
            self._say(f"  {stage.name}: {result.seconds:.0f} s, loss {_last(result.loss)}")
            self.times[f"  {stage.name}"] = result.seconds
        ended = {stage.branch: result.branch_path for stage, result in trained.items()}
        options = [*answering_options(wanted.launch, ended), *wanted.overrides]
        # The YAML is what makes a training usable by every other command.
        with atomic_write(wanted.config_path) as path:
            path.write_text(_answering_yaml(options), "utf-8")

    def _train_stage(self, stage: Stage, start: Path | None, logs: Path) -> Trained:
        size = load_config(stage.config_path, self.options.overrides).run.batch_size_train
        # Several processes share the batch of one: the steps stay what they are.
        size = max(1, size // self.options.launch.processes)
        return run_stage(
            stage,
            self.options.launch,
            out=self.options.out,
            start=start,
            options=[f"run.batch_size_train={size}"],
            log=logs / f"{stage.name}.log",
        )

    def score(self) -> None:
        """Score the answers, unless the same was scored before."""
        wanted = self.options
        files = {
            name: wanted.report(name) for name in ("scores.json", "scores.png", "samples.html")
        }
        options = ["--limit", str(wanted.limit), "--seed", str(wanted.seed)]
        words = [
            *("evaluate", str(wanted.data / "test/questions.json"), *options),
            *("--cfg-path", str(wanted.config_path), "--out", str(files["scores.json"])),
            *("--picture", str(files["scores.png"]), "--page", str(files["samples.html"])),
        ]
        # The command and the configuration, whose paths change with every training.
        made_of = shlex.join(words) + "\n" + wanted.config_path.read_text("utf-8")
        mark = wanted.report("scores.made_of")
        known = mark.read_text("utf-8") if mark.exists() else ""
        if known == made_of and all(path.exists() for path in files.values()):
            self._say(f"  are there already: {files['scores.json']}")
            return
        # Without the mark nobody takes half of a result for all of it.
        mark.unlink(missing_ok=True)
        _program(words)
        mark.write_text(made_of, "utf-8")

    def ask(self) -> None:
        """Ask one question, and print the right answer beside the model's."""
        clip, truth = _clip_to_ask_about(self.options)
        cfg = ["--cfg-path", str(self.options.config_path)]
        said = _program(["ask", str(clip), QUESTION, *cfg, "--max-new-tokens", "12"])
        self._say(f"  {clip}\n  {QUESTION}\n  answer: {said.strip()}\n  truth:  {truth}")

    def report(self) -> None:
        """Print the table, the times, and three commands to try next."""
        wanted = self.options
        found = json.loads(wanted.report("scores.json").read_text("utf-8"))["scores"]
        names = ("type", "condition", "right", "count", "chance")
        scores = [Score(**{name: entry[name] for name in names}) for entry in found]
        width = self.console.width if self.console.is_terminal else None
        self._say("\nRight answers in percent (95 % interval), held-out combinations\n")
        self._say(score_table(scores, width=width))
        times = "\n".join(f"{seconds:7.0f}  {name}" for name, seconds in self.times.items())
        self._say(f"\nSeconds\n\n{times}")
        cfg = "" if wanted.fast else f" --cfg-path {shlex.quote(str(wanted.config_path))}"
        clip = shlex.quote(str(_clip_to_ask_about(wanted)[0]))
        self._say(
            f"\nPicture and samples: {wanted.report('scores.png')}, "
            f"{wanted.report('samples.html')}\n\nTry next:\n\n"
            f'  video-llama ask {clip} "What do you hear?"{cfg}\n'
            f"  video-llama chat {clip}{cfg}\n  video-llama demo{cfg}"
        )

    def _step(self, name: str, work: Callable[[], None]) -> None:
        self._say(f"\n{name}")
        begin = time.monotonic()
        work()
        self.times[name] = time.monotonic() - begin
        self._say(f"  {self.times[name]:.0f} s")

    def _say(self, text: str) -> None:
        self.console.print(text, markup=False)


def _program(words: Sequence[str]) -> str:
    """Run a command of video-llama and return what it prints; its progress goes to the terminal.

    Raises:
        StepError: it has failed; its own message stands in the terminal.
    """
    command = [sys.executable, "-m", "video_llama.apps.cli.main", *words]
    # One thread a process, unless the user says otherwise: the processes share the cores.
    threads = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    result = subprocess.run(
        command, stdout=subprocess.PIPE, text=True, env={**threads, **os.environ}
    )
    if result.returncode:
        again = shlex.join(["video-llama", *words])
        raise StepError(f"it ended with status {result.returncode}; to repeat this step:\n{again}")
    return result.stdout


def _is_written(wanted: QuickstartOptions) -> bool:
    """Return whether the world that is wanted lies in its folder."""
    path = wanted.data / "world.json"
    if not path.exists():
        return False
    # Counts of all files tell apart other numbers of clips and other splits of the same seed.
    found = json.loads(path.read_text("utf-8"))
    items = plan(wanted.num_clips, World(seed=wanted.seed), splits=wanted.splits)
    counts = {f"{split}/{source}": len(several) for (split, source), several in items.items()}
    return bool(found["world"]["seed"] == wanted.seed and found["items"] == counts)


def _answering_yaml(options: Sequence[str]) -> str:
    """Return the default configuration with some settings changed."""
    values = OmegaConf.load(default_config_path())
    return OmegaConf.to_yaml(OmegaConf.merge(values, OmegaConf.from_dotlist(list(options))))


def _clip_to_ask_about(options: QuickstartOptions) -> tuple[Path, str]:
    """Return a held-out clip of one thing, and what is seen in it."""
    path = options.data / "test/questions.json"
    # Contradictory clips show one thing and play another: no first impression of the model.
    for entry in json.loads(path.read_text("utf-8")):
        if entry["type"] == "see" and not entry["contradictory"]:
            return path.parent / entry["path"], entry["answer"]
    raise StepError(f"{path}: it has no question of type see; more clips are needed")


def _last(loss: Sequence[tuple[int, float]]) -> str:
    return f"{loss[-1][1]:.2f}" if loss else "unknown"
