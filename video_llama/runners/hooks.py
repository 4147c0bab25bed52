"""The moments of a run at which a hook can act.

Sets the learning rate of every step.

Saves checkpoints when they are due.

Evaluates the valid splits after every epoch and the test splits after the run.

Writes log.jsonl.

Measures speed, waiting for data, memory and the time that is left.

Shows how the run is getting on.

Passes figures to TensorBoard.
"""

from __future__ import annotations

import datetime
import json
import logging
import resource
import sys
import time
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import torch
from tqdm import tqdm

from video_llama.common.io import atomic_write
from video_llama.runners.checkpoints import Checkpoint, CheckpointStore
from video_llama.runners.optim import learning_rate

if TYPE_CHECKING:
    from video_llama.runners.runner import Runner


class Hook:
    """Does one thing beside the steps of training; every method may be left as it is.

    An update follows every `accum_grad_iters` steps. All processes call the same methods at the
    same steps.
    """

    name = ""
    """Under which a checkpoint holds the hook's state."""

    def start(self, runner: Runner) -> None:
        """Before the first step, with the state of a checkpoint in place."""

    def before_step(self, runner: Runner) -> None:
        """Before a step; `runner.step` steps are done."""

    def after_step(self, runner: Runner) -> None:
        """After forward and backward; `runner.batch` is what they saw."""

    def measure(self, runner: Runner) -> dict[str, float]:
        """This process's figures since the last update, under the same names in every process.

        Their sums over the processes are in `runner.sums` at the next `after_update`.
        """
        return {}

    def after_update(self, runner: Runner) -> None:
        """After the weights were updated, or the update was skipped."""

    def finish(self, runner: Runner) -> None:
        """After the last step, or when the run was stopped in order."""

    def close(self) -> None:
        """At the end, however the run has ended."""

    def state_dict(self) -> dict[str, Any]:
        """Plain values that a resumed run needs; the same in every process."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""


def crossed(before: int, now: int, every: int) -> bool:
    """Whether a multiple of `every` lies in (before, now]: what is due, where steps come in groups.

    Args:
        before: steps done at the last update.
        now: steps done.
        every: the distance of what is due; 0: never.
    """
    return every > 0 and now // every > before // every


class LearningRate(Hook):
    """Gives all groups of the optimiser the rate of the schedule."""

    def before_step(self, runner: Runner) -> None:
        """Set the rate, a function of the steps done."""
        runner.learning_rate = learning_rate(runner.step, runner.settings)
        for group in runner.optimizer.param_groups:
            group["lr"] = runner.learning_rate


logger = logging.getLogger(__name__)


class SaveCheckpoints(Hook):
    """Saves every `save_every` steps, at each epoch's end, at the run's end and when it is stopped.

    Args:
        store: where; the main process writes, the others wait and share its errors.
    """

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store

    def after_update(self, runner: Runner) -> None:
        """Save if a checkpoint is due.

        Raises:
            DiskFullError: in every process.
        """
        settings = runner.settings
        due = (
            crossed(runner.previous_step, runner.step, settings.save_every)
            or crossed(runner.previous_step, runner.step, settings.iters_per_epoch)
            or runner.step == runner.num_steps
            or runner.stopping
        )
        if due:
            runner.checkpoint = runner.world.on_main(lambda: self._save(runner).path)

    def _save(self, runner: Runner) -> Checkpoint:
        saved = self._store.save(
            runner.step,
            write_branch=lambda path: runner.parts.write_branch(path, runner.step),
            state=runner.state_dict(),
            metric=runner.validation_loss,
        )
        logger.info("saved %s", saved.path)
        return saved


class Evaluate(Hook):
    """Puts results into `runner.evaluations`, and the mean validation loss beside them."""

    def after_update(self, runner: Runner) -> None:
        """Evaluate at the end of an epoch and of the run."""
        settings = runner.settings
        last = runner.step == runner.num_steps
        if last or crossed(runner.previous_step, runner.step, settings.iters_per_epoch):
            valid = [runner.evaluate(split) for split in settings.valid_splits]
            runner.evaluations += valid
            if valid:
                runner.validation_loss = sum(result["loss"] for result in valid) / len(valid)
        if last:
            runner.evaluations += [runner.evaluate(split) for split in settings.test_splits]


LOG = "log.jsonl"


class JsonLog(Hook):
    """Appends lines to log.jsonl, with numbers as exact as they are.

    A resumed run drops the lines after its checkpoint, so that the log reads as that of one run.
    Only the main process writes.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def start(self, runner: Runner) -> None:
        """Open the log."""
        if not runner.world.is_main:
            return
        path = runner.folder / LOG
        if path.exists():
            _drop_after(path, runner.step)
        self._file = path.open("a", encoding="utf-8")

    def after_update(self, runner: Runner) -> None:
        """Write a line where one is due."""
        if self._file is None:
            return
        for line in [*due_lines(runner), *runner.evaluations]:
            self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def is_due(runner: Runner) -> bool:
    """Whether figures are to be shown and logged at this update."""
    every = runner.settings.log_every
    return crossed(runner.previous_step, runner.step, every) or runner.step == runner.num_steps


def due_lines(runner: Runner) -> list[dict[str, Any]]:
    """The figures of this update where they are due, otherwise nothing."""
    if not is_due(runner):
        return []
    return [
        {
            "step": runner.step,
            "loss": runner.loss,
            "lr": runner.learning_rate,
            "grad_norm": runner.grad_norm,
            **runner.figures,
        }
    ]


def _drop_after(path: Path, step: int) -> None:
    """Drop the lines after a step, and one that a crash has left unfinished."""
    kept = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if json.loads(line)["step"] > step:
                continue
        except (ValueError, LookupError, TypeError):
            continue
        kept.append(line + "\n")
    with atomic_write(path) as temporary:
        temporary.write_text("".join(kept), encoding="utf-8")


MEMORY_OF_OLD = 0.9
"""Weight of the earlier updates in the running means: about the last ten count."""


class Throughput(Hook):
    """Puts `samples_per_s`, `data_wait`, `memory_gb` and `eta_s` into `runner.figures`."""

    def __init__(self) -> None:
        self._items = 0
        self._started = 0.0
        self._seconds = self._samples = self._waits = self._steps = 0.0

    def start(self, runner: Runner) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def after_step(self, runner: Runner) -> None:
        """Count the items."""
        self._items += len(runner.batch.item_ids)

    def measure(self, runner: Runner) -> dict[str, float]:
        """Items, and seconds that the data kept waiting."""
        items, self._items = self._items, 0
        return {"items": float(items), "wait": runner.wait_seconds}

    def after_update(self, runner: Runner) -> None:
        """Renew the running means."""
        now = time.perf_counter()
        new = (
            now - self._started,
            runner.sums["items"],
            runner.sums["wait"] / runner.world.size,
            float(runner.step - runner.previous_step),
        )
        old = (self._seconds, self._samples, self._waits, self._steps)
        self._seconds, self._samples, self._waits, self._steps = (
            MEMORY_OF_OLD * a + b for a, b in zip(old, new, strict=True)
        )
        self._started, runner.wait_seconds = now, 0.0
        runner.figures.update(
            samples_per_s=self._samples / self._seconds,
            data_wait=self._waits / self._seconds,
            memory_gb=memory_gb(runner.world.device),
            eta_s=(runner.num_steps - runner.step) * self._seconds / self._steps,
        )


def memory_gb(device: torch.device) -> float:
    """The most memory that this process has had so far, GB: of the GPU, or of the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class Progress(Hook):
    """A bar on a terminal, plain lines elsewhere; the main process only."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._losses: list[float] = []

    def start(self, runner: Runner) -> None:
        """Draw the bar."""
        if runner.world.is_main and sys.stderr.isatty():
            self._bar = tqdm(total=runner.num_steps, initial=runner.step, unit="step")

    def after_update(self, runner: Runner) -> None:
        """Renew the bar, or write a line where one is due."""
        self._losses.append(runner.loss)
        if self._bar is not None:
            self._bar.set_postfix_str(_summary(runner, self._losses[-10:]), refresh=False)
            self._bar.update(runner.step - runner.previous_step)
        if is_due(runner):
            if self._bar is None and runner.world.is_main:
                summary = _summary(runner, self._losses)
                logger.info("step %d/%d: %s", runner.step, runner.num_steps, summary)
            self._losses = self._losses[-10:] if self._bar is not None else []

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.close()


def _summary(runner: Runner, losses: list[float]) -> str:
    figures = runner.figures
    left = datetime.timedelta(seconds=round(figures["eta_s"]))
    text = (
        f"loss {sum(losses) / len(losses):.4f}, lr {runner.learning_rate:.3g}, "
        f"{figures['samples_per_s']:.1f} samples/s, waiting for data {figures['data_wait']:.0%}, "
        f"{figures['memory_gb']:.1f} GB, {left} left"
    )
    bad = round(figures.get("bad_items", 0))
    return f"{text}, {bad} bad items" if bad else text


class Tracker(Hook):
    """Passes the figures to accelerate's trackers (TensorBoard)."""

    def start(self, runner: Runner) -> None:
        """Open the tracker; what it had after the checkpoint is purged."""
        options = {"tensorboard": {"purge_step": runner.step + 1}} if runner.step else {}
        runner.accelerator.init_trackers("tensorboard", init_kwargs=options)

    def after_update(self, runner: Runner) -> None:
        """Log where it is due."""
        for line in due_lines(runner):
            values = {f"train/{key}": value for key, value in line.items() if key != "step"}
            runner.accelerator.log(values, step=runner.step)
        for line in runner.evaluations:
            split = line["split"]
            values = {f"{split}/{k}": v for k, v in line.items() if isinstance(v, float)}
            runner.accelerator.log(values, step=runner.step)

    def finish(self, runner: Runner) -> None:
        """Close the tracker, and leave the processes connected, unlike `end_training`."""
        for tracker in runner.accelerator.trackers:
            tracker.finish()
