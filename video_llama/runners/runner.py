"""Batches that are on the GPU before they are needed.

The training loop.
"""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from video_llama.common.io import DiskFullError, is_disk_full
from video_llama.runners.checkpoints import Checkpoint, check_length, check_unchanged
from video_llama.runners.distributed import World
from video_llama.runners.evaluation import Evaluator
from video_llama.runners.folder import RunFolder
from video_llama.runners.hooks import Hook
from video_llama.runners.optim import build_optimizer, step_seed
from video_llama.runners.safeguards import BadItemList
from video_llama.runners.settings import RunSettings
from video_llama.runners.state import RunParts, TrainedPart, load_branch
from video_llama.types import Batch, LocalError, VideoLlamaError, WeightsError, plain_message


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on a device; to a GPU, each is copied while the one before is computed on.

    Args:
        batches: on the host, pinned for a GPU.
        device: where to.
    """
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    side = torch.cuda.Stream(device)
    waiting: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(side):
            copied = batch.to(device)
            event = side.record_event()
        if waiting is not None:
            yield _taken_over(*waiting)
        waiting = copied, event
    if waiting is not None:
        yield _taken_over(*waiting)


def _taken_over(batch: Batch, event: torch.cuda.Event) -> Batch:
    """A batch that the current stream may use, and whose memory is not reused before it has."""
    current = torch.cuda.current_stream()
    current.wait_event(event)
    for name in (field.name for field in fields(batch)):
        value = getattr(batch, name)
        if isinstance(value, Tensor):
            value.record_stream(current)
    return batch


logger = logging.getLogger(__name__)


class Runner:
    """Trains one branch, from the first step or from a checkpoint's.

    Args:
        settings: the run section.
        parts: model, data and what else the run is made of.
        world: the processes.
        accelerator: of `build_accelerator`.
        folder: of the run, claimed; it is released after the training.
        hooks: what happens beside the steps, in this order.

    Attributes:
        step: steps done.
        previous_step: steps done at the update before the last one.
        num_steps: length of the run, steps.
        batch: of the last step.
        loss: of the last update: its mean over the processes and the accumulated steps.
        learning_rate: of the last step.
        grad_norm: of the last update, before clipping.
        healthy: whether the last update was made; False: loss or gradient was not finite.
        sums: what the hooks have measured, summed over the processes.
        figures: speed and the like, for logs.
        evaluations: results since the last update.
        validation_loss: measured after the last update; None: it was not.
        wait_seconds: waiting for data since the last update.
        bad_items: those that the run has met.
        stopping: end after this update.
        checkpoint: folder of the last one saved.
    """

    def __init__(
        self,
        settings: RunSettings,
        *,
        parts: RunParts,
        world: World,
        accelerator: Accelerator,
        folder: RunFolder,
        hooks: Sequence[Hook],
    ) -> None:
        self.settings = settings
        self.parts = parts
        self.world = world
        self.accelerator = accelerator
        self.folder = folder.path
        self._claimed = folder
        self.hooks = hooks
        self.step = self.previous_step = self._last_update = 0
        self.num_steps = settings.max_epoch * settings.iters_per_epoch
        self.batch: Batch
        self.loss = self.learning_rate = self.grad_norm = 0.0
        self.healthy = True
        self.sums: dict[str, float] = {}
        self.figures: dict[str, float] = {}
        self.evaluations: list[dict[str, Any]] = []
        self.validation_loss: float | None = None
        self.wait_seconds = 0.0
        self.bad_items = BadItemList(folder.path, world)
        self.stopping = False
        self.checkpoint: Path | None = None
        self._losses: list[float] = []
        self._parameters = [parameter for _, parameter in parts.trainable]
        self.optimizer = accelerator.prepare(build_optimizer(parts.trainable, settings))
        self._trained = accelerator.prepare(TrainedPart(parts.task, self._parameters))
        self._evaluator = Evaluator(
            parts.task,
            settings=settings,
            world=world,
            accelerator=accelerator,
            folder=self.folder,
            bad_items=self.bad_items,
        )

    def train(self) -> bool:
        """Train to the end.

        Returns:
            False where the run was asked to stop before; a checkpoint has been saved then.

        Raises:
            DiskFullError: no room for a checkpoint or a log.
        """
        self.parts.task.model.train()
        try:
            self._call("start")
            for batch in self._batches():
                self.batch = batch
                self._call("before_step")
                self._forward_backward()
                self._call("after_step")
                if self._is_update():
                    self._update()
                    self._call("after_update")
                if self.stopping:
                    break
            self._call("finish")
        except OSError as error:  # of a log; checkpoints tell it themselves
            if not is_disk_full(error):
                raise
            raise DiskFullError(
                f"no room for the logs in {self.folder} ({error}); make room on that disk, and go "
                f"on with run.resume_ckpt_path={self.folder}"
            ) from error
        finally:
            for hook in self.hooks:
                hook.close()
            self._claimed.release()
        return self.step == self.num_steps

    def evaluate(self, split: str) -> dict[str, Any]:
        """Loss and generated answers on a split; see `Evaluator`."""
        batches = self._told(self.parts.eval_batches[split]())
        return self._evaluator.evaluate(split, batches, self.step)

    def evaluate_all(self) -> list[dict[str, Any]]:
        """What `evaluate` gives for every valid and test split of the configuration."""
        return [self.evaluate(split) for split in self.parts.eval_batches]

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds beside the branch: tensors and plain values."""
        scaler = self.accelerator.scaler
        return {
            "step": self.step,
            "optimizer": self.optimizer.state_dict(),
            "scaler": scaler.state_dict() if scaler is not None else None,
            "hooks": {hook.name: hook.state_dict() for hook in self.hooks if hook.name},
            "identity": self.parts.identity,
        }

    def resume(self, checkpoint: Checkpoint) -> None:
        """Take over the state of a checkpoint.

        Raises:
            ConfigError: the run is another one.
            WeightsError: the checkpoint is damaged, or none of a run like this.
        """
        state = checkpoint.state()
        if missing := {*self.state_dict()} - {*state}:
            raise WeightsError(
                f"{checkpoint.path}: no state of a training, it lacks {', '.join(sorted(missing))}"
            )
        check_unchanged(state["identity"], self.parts.identity, checkpoint.path)
        if not self.settings.evaluate:
            check_length(state["step"], self.num_steps, checkpoint.path)
        load_branch(self.parts.trainable, checkpoint.branch())
        self.optimizer.load_state_dict(state["optimizer"])
        if self.accelerator.scaler is not None and state["scaler"] is not None:
            self.accelerator.scaler.load_state_dict(state["scaler"])
        for hook in self.hooks:
            if hook.name in state["hooks"]:
                hook.load_state_dict(state["hooks"][hook.name])
        self.step = self.previous_step = self._last_update = state["step"]
        self.checkpoint = checkpoint.path
        logger.info("resuming at step %d of %d: %s", self.step, self.num_steps, checkpoint.path)

    def _call(self, moment: str) -> None:
        for hook in self.hooks:
            getattr(hook, moment)(self)

    def _batches(self) -> Iterator[Batch]:
        batches = self._told(self.parts.train_batches(self.step, self.num_steps))
        batches = on_device(batches, self.world.device)
        while True:
            started = time.perf_counter()
            batch = next(batches, None)
            self.wait_seconds += time.perf_counter() - started
            if batch is None:
                return
            yield batch

    def _told(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Batches; what goes wrong with them, this process has to tell itself."""
        try:
            yield from batches
        except VideoLlamaError as error:
            where = f"rank {self.world.rank}: " if self.world.size > 1 else ""
            raise LocalError(f"{where}{plain_message(error)}") from error

    def _is_update(self) -> bool:
        return self.step % self.settings.accum_grad_iters == 0 or self.step == self.num_steps

    def _forward_backward(self) -> None:
        torch.manual_seed(step_seed(self.settings.seed, self.step, self.world.rank))
        self.step += 1
        waits = not self._is_update()  # the gradients of the processes are averaged only then
        context = self.accelerator.no_sync if waits else contextlib.nullcontext
        with context(self._trained):
            loss = self._trained(self.batch)
            self.accelerator.backward(loss)  # divides by accum_grad_iters
        self._losses.append(float(loss.detach()))

    def _update(self) -> None:
        self.previous_step, self._last_update = self._last_update, self.step
        self.evaluations, self.validation_loss = [], None
        finite = [loss for loss in self._losses if math.isfinite(loss)]
        figures = {"loss": math.fsum(finite), "finite": len(finite), "steps": len(self._losses)}
        for hook in self.hooks:
            figures |= hook.measure(self)
        self.sums = self.world.sum(figures)
        norm = self.accelerator.clip_grad_norm_(
            self._parameters, self.settings.grad_clip or math.inf
        )
        self.grad_norm = float(norm)
        all_finite = self.sums["finite"] == self.sums["steps"]
        self.loss = self.sums["loss"] / self.sums["steps"] if all_finite else math.nan
        self.healthy = all_finite and math.isfinite(self.grad_norm)
        if self.healthy:
            self.optimizer.step()
        elif self.accelerator.scaler is not None:
            self.accelerator.scaler.update()  # a smaller scale, so that the next one may fit
        self.optimizer.zero_grad()
        self._losses = []
