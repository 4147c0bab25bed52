"""Saves checkpoints when they are due."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

from video_llama.runners.checkpoints import Checkpoint, CheckpointStore
from video_llama.runners.hooks.base import Hook, crossed

if TYPE_CHECKING:
    from video_llama.runners.runner import Runner

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
