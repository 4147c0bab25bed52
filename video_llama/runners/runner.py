"""The training loop."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from video_llama.runners.checkpoints import Checkpoint, check_length, check_unchanged
from video_llama.runners.distributed import ProcessGroup
from video_llama.runners.folder import BadItemList, RunFolder, disk_errors
from video_llama.runners.hooks import Hook
from video_llama.runners.optim import OWN_OPTIONS, build_optimizer, step_seed
from video_llama.runners.settings import RunSettings
from video_llama.runners.state import RunComponents, RunState
from video_llama.runners.task import Evaluator, TrainedPart
from video_llama.types import Batch, LocalError, VideoLlamaError, WeightsError, plain_message

logger = logging.getLogger(__name__)


class Runner:
    """Trains one branch, from the first step or from a checkpoint's."""

    def __init__(
        self,
        settings: RunSettings,
        *,
        components: RunComponents,
        processes: ProcessGroup,
        accelerator: Accelerator,
        folder: RunFolder,
        hooks: Sequence[Hook],
    ) -> None:
        self.settings = settings
        self.components = components
        self.hooks = hooks
        self.state = RunState(
            settings=settings,
            processes=processes,
            folder=folder.path,
            bad_items=BadItemList(folder.path, processes),
            accelerator=accelerator,
            optimizer=accelerator.prepare(build_optimizer(components.trainable, settings)),
            write_branch=components.write_branch,
            evaluate=self.evaluate,
            checkpoint_state=self.state_dict,
        )
        # Only what trains is wrapped and prepared: the frozen parts stay as they are.
        self._folder = folder
        self._processes = processes
        self._accelerator = accelerator
        self._last_update = 0
        self._losses: list[Tensor] = []
        self._parameters = [parameter for _, parameter in components.trainable]
        self._trained = accelerator.prepare(TrainedPart(components.task, self._parameters))
        self._evaluator = Evaluator(
            task=components.task,
            settings=settings,
            processes=processes,
            accelerator=accelerator,
            folder=folder.path,
            bad_items=self.state.bad_items,
        )

    def train(self) -> bool:
        """Train to the end.

        Returns:
            False where the run was asked to stop before; a checkpoint has been saved then.

        Raises:
            DiskFullError: no room for a checkpoint or a log.
            RunFolderError: the folder of the run can no longer be written to.
        """
        run = self.state
        self.components.task.model.train()
        with disk_errors(run.folder), contextlib.ExitStack() as at_end:
            # However the run ends, each hook is closed, and the folder is released last.
            at_end.callback(self._folder.release)
            for hook in self.hooks:
                at_end.callback(hook.close)
            self._call("start")
            for run.batch in self._train_batches():
                self._call("before_step")
                self._forward_backward()
                self._call("after_step")
                if self._is_update():
                    self._update()
                    self._call("after_update")
                if run.stopping:
                    break
            self._call("finish")
        return run.is_last

    def evaluate(self, split: str) -> dict[str, Any]:
        """Measure loss and generated answers on a split; see `Evaluator`."""
        # The batches of a split are dealt to the processes, so an error of one is not the others'.
        batches = self._with_local_errors(self.components.eval_batches[split]())
        with disk_errors(self.state.folder):
            return self._evaluator.evaluate(split, batches, self.state.step)

    def evaluate_all(self) -> list[dict[str, Any]]:
        """Evaluate every valid and test split of the configuration."""
        return [self.evaluate(split) for split in self.components.eval_batches]

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint holds beside the branch: tensors and plain values."""
        scaler = self._accelerator.scaler
        return {
            "step": self.state.step,
            "optimizer": self.state.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "hooks": {hook.name: hook.state_dict() for hook in self.hooks if hook.name},
            "identity": self.components.identity,
        }

    def resume(self, checkpoint: Checkpoint) -> None:
        """Restore the state of a checkpoint.

        Raises:
            ConfigError: the run is another one.
            WeightsError: the checkpoint is damaged, or none of a run like this.
        """
        saved = checkpoint.state()
        if missing := {*self.state_dict()} - {*saved}:
            raise WeightsError(
                f"{checkpoint.path}: no state of a training, it lacks {', '.join(sorted(missing))}"
            )
        # Everything is compared before the first value is taken over.
        check_unchanged(saved["identity"], self.components.identity, checkpoint.path)
        if not self.settings.evaluate:
            check_length(saved["step"], self.settings.num_steps, checkpoint.path)
        branch = checkpoint.branch()
        self._load_branch(branch | self.components.read_adapter(checkpoint.path))
        # The moments go on; decay, betas and the adapter's rate are those of the settings now.
        options = [dict(group) for group in self.state.optimizer.param_groups]
        self.state.optimizer.load_state_dict(saved["optimizer"])
        for group, now in zip(self.state.optimizer.param_groups, options, strict=True):
            group.update({key: now[key] for key in OWN_OPTIONS if key in now})
        if self._accelerator.scaler is not None and saved["scaler"] is not None:
            self._accelerator.scaler.load_state_dict(saved["scaler"])
        for hook in self.hooks:
            if hook.name in saved["hooks"]:
                hook.load_state_dict(saved["hooks"][hook.name])
        run = self.state
        run.step = run.previous_step = self._last_update = saved["step"]
        run.checkpoint = checkpoint.path
        total = self.settings.num_steps
        logger.info("resuming at step %d of %d: %s", run.step, total, checkpoint.path)

    def _load_branch(self, tensors: dict[str, Tensor]) -> None:
        named = dict(self.components.trainable)
        if named.keys() != tensors.keys():
            raise ValueError(f"the names differ: {sorted(named.keys() ^ tensors.keys())[:4]}")
        with torch.no_grad():
            for name, parameter in named.items():
                parameter.copy_(tensors[name])

    def _call(self, moment: str) -> None:
        for hook in self.hooks:
            getattr(hook, moment)(self.state)

    def _train_batches(self) -> Iterator[Batch]:
        """Yield the batches on the device, and measure how long they keep the training waiting."""
        loaded = self.components.train_batches(self.state.step, self.settings.num_steps)
        batches = on_device(self._with_local_errors(loaded), self._processes.device)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.state.wait_seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _with_local_errors(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yield batches; an error of this process's data is one that this process has to report."""
        try:
            yield from batches
        except VideoLlamaError as error:
            rank, size = self._processes.rank, self._processes.size
            where = f"rank {rank}: " if size > 1 else ""
            raise LocalError(f"{where}{plain_message(error)}") from error

    def _is_update(self) -> bool:
        return self.state.step % self.settings.accum_grad_iters == 0 or self.state.is_last

    def _forward_backward(self) -> None:
        run = self.state
        # Dropout is a function of seed, step and rank, so that a resumed run draws the same.
        torch.manual_seed(step_seed(self.settings.seed, run.step, self._processes.rank))
        run.step += 1
        # The gradients of the processes are averaged only in the last step before an update.
        waits = not self._is_update()
        context = self._accelerator.no_sync if waits else contextlib.nullcontext
        with context(self._trained):
            loss = self._trained(run.batch)
            self._accelerator.backward(loss)  # divides by accum_grad_iters
        self._losses.append(loss.detach())

    def _update(self) -> None:
        run, scaler = self.state, self._accelerator.scaler
        run.previous_step, self._last_update = self._last_update, run.step
        run.evaluations, run.validation_loss = [], None
        # One reduction for everything that the processes have to agree on: the loss, whether it is
        # finite, and the figures of the hooks. All processes then decide alike.
        losses = torch.stack(self._losses).tolist()  # waits for the device, once per update
        finite = [loss for loss in losses if math.isfinite(loss)]
        figures = {"loss": math.fsum(finite), "finite": len(finite), "steps": len(losses)}
        for hook in self.hooks:
            figures |= hook.measure(run)
        run.sums = self._processes.sum(figures)
        all_finite = run.sums["finite"] == run.sums["steps"]
        run.loss = run.sums["loss"] / run.sums["steps"] if all_finite else math.nan
        # The norm is measured also where nothing is clipped: one bad gradient would spoil AdamW's
        # moments for many updates.
        limit = self.settings.grad_clip or math.inf
        run.grad_norm = float(self._accelerator.clip_grad_norm_(self._parameters, limit))
        run.healthy = all_finite and math.isfinite(run.grad_norm)
        if run.healthy:
            run.optimizer.step()
        elif scaler is not None:
            scaler.update()  # a smaller scale, so that the next gradient may fit
        run.optimizer.zero_grad()
        self._losses = []


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Move batches to a device; to a GPU, each is copied while the one before is computed on."""
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    # The copies go through a stream of their own, one batch before the computation needs it.
    side = torch.cuda.Stream(device)
    waiting: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(side):
            copied = batch.to(device)
            event = side.record_event()
        if waiting is not None:
            yield _handed_over(*waiting)
        waiting = copied, event
    if waiting is not None:
        yield _handed_over(*waiting)


def _handed_over(batch: Batch, event: torch.cuda.Event) -> Batch:
    """Let the current stream use a batch, and keep its memory from reuse before it has."""
    current = torch.cuda.current_stream()
    current.wait_event(event)
    for name in (field.name for field in fields(batch)):
        value = getattr(batch, name)
        if isinstance(value, Tensor):
            value.record_stream(current)
    return batch
