"""What happens beside the steps of a run: rates, checkpoints, evaluation, logs and progress."""

from __future__ import annotations

import datetime
import json
import logging
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import IO, Any

import torch
from tqdm import tqdm

from video_llama.common.io import atomic_write
from video_llama.runners.checkpoints import Checkpoint, CheckpointStore
from video_llama.runners.optim import learning_rate
from video_llama.runners.state import RunState

logger = logging.getLogger(__name__)

LOG = "log.jsonl"

LEAST_BAR = 10
"""Columns of a progress bar itself on a narrow terminal."""

DECAY = 0.9
"""Weight of the earlier updates in the running means: about the last ten count."""


class Hook:
    """Has one concern beside the steps of training; every method may be left as it is.

    An update follows every `accum_grad_iters` steps. All processes call the same methods at the
    same steps.
    """

    name = ""
    """Under which a checkpoint holds the hook's state."""

    def start(self, run: RunState) -> None:
        """Act before the first step, with the state of a checkpoint in place."""

    def before_step(self, run: RunState) -> None:
        """Act before a step; `run.step` steps are done."""

    def after_step(self, run: RunState) -> None:
        """Act after forward and backward of `run.batch`."""

    def measure(self, run: RunState) -> dict[str, float]:
        """Return this process's figures since the last update, under the same names in every one.

        Their sums over the processes are in `run.sums` at the next `after_update`.
        """
        return {}

    def after_update(self, run: RunState) -> None:
        """Act after the weights were updated, or the update was skipped."""

    def finish(self, run: RunState) -> None:
        """Act after the last step, or when the run was stopped in order."""

    def close(self) -> None:
        """Free what the hook holds, however the run has ended."""

    def state_dict(self) -> dict[str, Any]:
        """Return plain values that a resumed run needs; the same in every process."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""


class LearningRate(Hook):
    """Gives all groups of the optimiser the rate of the schedule."""

    def before_step(self, run: RunState) -> None:
        """Set the rate, a function of the steps done."""
        run.learning_rate = learning_rate(run.step, run.settings)
        for group in run.optimizer.param_groups:
            group["lr"] = run.learning_rate * group.get("lr_scale", 1.0)


class SaveCheckpoints(Hook):
    """Saves every `save_every` steps, at the end of each epoch and of the run, and when stopped."""

    def __init__(self, store: CheckpointStore) -> None:
        self._store = store

    def after_update(self, run: RunState) -> None:
        """Save if a checkpoint is due.

        Raises:
            DiskFullError: in every process.
        """
        # Validation comes before this hook, so its loss belongs to the weights that are saved.
        periodic = run.is_due(run.settings.save_every) or run.is_due(run.settings.iters_per_epoch)
        if periodic or run.is_last or run.stopping:
            run.checkpoint = run.processes.on_main(lambda: self._save(run).path)

    def _save(self, run: RunState) -> Checkpoint:
        saved = self._store.save(
            run.step,
            write_branch=lambda path: run.write_branch(path, run.step),
            state=run.checkpoint_state(),
            metric=run.validation_loss,
        )
        logger.info("saved %s", saved.path)
        return saved


class Evaluate(Hook):
    """Puts results into `run.evaluations`, and the mean validation loss beside them."""

    def after_update(self, run: RunState) -> None:
        """Evaluate the valid splits after each epoch, the test splits after the run."""
        if run.is_last or run.is_due(run.settings.iters_per_epoch):
            # Each split weighs the same in the mean, whatever its size.
            valid = [run.evaluate(split) for split in run.settings.valid_splits]
            run.evaluations += valid
            if valid:
                run.validation_loss = sum(result["loss"] for result in valid) / len(valid)
        if run.is_last:
            run.evaluations += [run.evaluate(split) for split in run.settings.test_splits]


def is_log_due(run: RunState) -> bool:
    """Whether figures are to be shown and logged at this update."""
    return run.is_due(run.settings.log_every) or run.is_last


def log_lines(run: RunState) -> list[dict[str, Any]]:
    """Return the figures of this update as one line where they are due, otherwise nothing."""
    if not is_log_due(run):
        return []
    shown = {"loss": run.loss, "lr": run.learning_rate, "grad_norm": run.grad_norm}
    return [{"step": run.step, **shown, **run.figures}]


class JsonLog(Hook):
    """Appends lines to log.jsonl, with numbers at full precision.

    A resumed run drops the lines after its checkpoint, so that the log reads as that of one run.
    Only the main process writes.
    """

    def __init__(self) -> None:
        self._file: IO[str] | None = None

    def start(self, run: RunState) -> None:
        """Open the log."""
        if run.processes.is_main:
            # What came after the checkpoint is computed again, with the same numbers.
            path = run.folder / LOG
            if path.exists():
                _drop_after(path, run.step)
            self._file = path.open("a", encoding="utf-8")

    def after_update(self, run: RunState) -> None:
        """Write a line where one is due."""
        if self._file is not None:
            # The time of day tells which line a slow or stopped run belongs to in other logs.
            now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
            for line in [*log_lines(run), *run.evaluations]:
                self._file.write(json.dumps({**line, "time": now}) + "\n")
            # A run that is killed has then logged all that it has done.
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


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


class Throughput(Hook):
    """Puts `samples_per_s`, `data_wait`, `memory_gb` and `eta_s` into `run.figures`."""

    def __init__(self) -> None:
        self._items = 0
        self._started = 0.0
        self._means = (0.0, 0.0, 0.0, 0.0)  # seconds, items, seconds of waiting, steps

    def start(self, run: RunState) -> None:
        """Start the clock."""
        self._started = time.perf_counter()

    def after_step(self, run: RunState) -> None:
        """Count the items."""
        self._items += len(run.batch.item_ids)

    def measure(self, run: RunState) -> dict[str, float]:
        """Return the items, and the seconds that the data kept waiting."""
        items, self._items = self._items, 0
        return {"items": float(items), "wait": run.wait_seconds}

    def after_update(self, run: RunState) -> None:
        """Update the running means."""
        now = time.perf_counter()
        new = (
            now - self._started,
            run.sums["items"],
            run.sums["wait"] / run.processes.size,
            float(run.step - run.previous_step),
        )
        # One factor for all four: their quotients are means over the same recent updates.
        seconds, items, waits, steps = (
            DECAY * a + b for a, b in zip(self._means, new, strict=True)
        )
        self._means = (seconds, items, waits, steps)
        self._started, run.wait_seconds = now, 0.0
        run.figures |= {
            "samples_per_s": items / seconds,
            "data_wait": waits / seconds,
            "memory_gb": memory_gb(run.processes.device),
            "eta_s": (run.settings.num_steps - run.step) * seconds / steps,
        }


def memory_gb(device: torch.device) -> float:
    """Return the peak memory of this process so far, GB: of the GPU, or of the host."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    # getrusage counts in bytes on macOS and in kilobytes elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class Progress(Hook):
    """Shows a bar on a terminal, plain lines elsewhere; the main process only."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._losses: list[float] = []

    def start(self, run: RunState) -> None:
        """Draw the bar."""
        if run.processes.is_main and sys.stderr.isatty():
            # Our estimate of the time that is left knows the speed of recent steps, and how long
            # data were waited for: tqdm's own would stand beside it.
            self._bar = tqdm(
                total=run.settings.num_steps,
                initial=run.step,
                dynamic_ncols=True,
                bar_format="{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt}{postfix}",
            )

    def after_update(self, run: RunState) -> None:
        """Update the bar, or write a line where one is due."""
        # A line shows the mean since the line before, the bar that of the last ten updates.
        self._losses.append(run.loss)
        if self._bar is not None:
            counts = len(f"100%|| {run.settings.num_steps}/{run.settings.num_steps}, ")
            room = shutil.get_terminal_size().columns - counts - LEAST_BAR
            text = _fitting(_figures(run, self._losses[-10:]), room)
            self._bar.set_postfix_str(text, refresh=False)
            self._bar.update(run.step - run.previous_step)
        if is_log_due(run):
            if self._bar is None and run.processes.is_main:
                text = ", ".join(_figures(run, self._losses).values())
                logger.info("step %d/%d: %s", run.step, run.settings.num_steps, text)
            self._losses = self._losses[-10:] if self._bar is not None else []

    def close(self) -> None:
        """Leave the terminal in order."""
        if self._bar is not None:
            self._bar.close()


def _figures(run: RunState, losses: list[float]) -> dict[str, str]:
    """Return the texts of a line by what they tell, in its order."""
    figures = run.figures
    left = datetime.timedelta(seconds=round(figures["eta_s"]))
    bad = round(figures.get("bad_items", 0))
    texts = {
        "loss": f"loss {sum(losses) / len(losses):.4f}",
        "rate": f"lr {run.learning_rate:.3g}",
        "speed": f"{figures['samples_per_s']:.1f} samples/s",
        "waiting": f"waiting for data {figures['data_wait']:.0%}",
        "memory": f"{figures['memory_gb']:.1f} GB",
        "left": f"{left} left",
    }
    return texts | ({"bad": f"{bad} bad items"} if bad else {})


def _fitting(texts: dict[str, str], room: int) -> str:
    """Join what fits into a number of columns, the most important texts first, none of them cut."""
    shown: set[str] = set()
    for name in ("loss", "left", "bad", "speed", "waiting", "rate", "memory"):
        length = len(", ".join(texts[n] for n in (*shown, name) if n in texts))
        if length > room:
            break
        shown.add(name)
    return ", ".join(text for name, text in texts.items() if name in shown)


class Tracker(Hook):
    """Passes the figures to accelerate's trackers (TensorBoard)."""

    def start(self, run: RunState) -> None:
        """Open the tracker; what it had after the checkpoint is purged."""
        # Or the curve would have two values where the interrupted run went on for a while.
        options = {"tensorboard": {"purge_step": run.step + 1}} if run.step else {}
        run.accelerator.init_trackers("tensorboard", init_kwargs=options)

    def after_update(self, run: RunState) -> None:
        """Log where it is due."""
        # The same lines as in log.jsonl; TensorBoard takes numbers only, by their names.
        for line in log_lines(run):
            values = {f"train/{key}": value for key, value in line.items() if key != "step"}
            run.accelerator.log(values, step=run.step)
        for line in run.evaluations:
            split = line["split"]
            values = {f"{split}/{k}": v for k, v in line.items() if isinstance(v, float)}
            run.accelerator.log(values, step=run.step)

    def finish(self, run: RunState) -> None:
        """Close the tracker, and leave the processes connected, unlike `end_training`."""
        for tracker in run.accelerator.trackers:
            tracker.finish()
