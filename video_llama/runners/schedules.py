"""Learning-rate schedules: pure functions of the global step, so that resuming needs no state."""

from __future__ import annotations

import math
from collections.abc import Callable

from video_llama.registry import Registry
from video_llama.runners.settings import RunSettings

Schedule = Callable[[int, RunSettings], float]

SCHEDULES: Registry[Schedule] = Registry("learning-rate schedule")
"""`run.lr_sched` to the function."""


def learning_rate(step: int, settings: RunSettings) -> float:
    """The learning rate of a step.

    Args:
        step: steps done before, over the whole run.
        settings: `lr_sched` names the schedule; its lengths and rates are read.
    """
    return SCHEDULES.get(settings.lr_sched)(step, settings)


@SCHEDULES.register("linear_warmup_cosine_lr")
def warmup_cosine(step: int, settings: RunSettings) -> float:
    """A line from warmup_lr to init_lr, then half a cosine to min_lr.

    The cosine counts from the start of the run, as in the original, so that warm-up hides its
    beginning: there is a small drop where the two meet. Warm-up counts the steps of the whole run,
    where the original starts it anew in every epoch.

    Args:
        step: steps done before.
        settings: of the run.
    """
    if step < settings.warmup_steps:
        return _warmup(step, settings)
    phase = math.pi * step / (settings.max_epoch * settings.iters_per_epoch)
    swing = (settings.init_lr - settings.min_lr) * 0.5 * (1 + math.cos(phase))
    return settings.min_lr + swing


@SCHEDULES.register("linear_warmup_step_lr")
def warmup_step(step: int, settings: RunSettings) -> float:
    """A line from warmup_lr to init_lr, then a factor of lr_decay_rate per epoch, not below min_lr.

    Args:
        step: steps done before.
        settings: of the run.
    """
    if step < settings.warmup_steps:
        return _warmup(step, settings)
    epoch = step // settings.iters_per_epoch
    return max(settings.min_lr, settings.init_lr * settings.lr_decay_rate**epoch)


def _warmup(step: int, settings: RunSettings) -> float:
    rise = (settings.init_lr - settings.warmup_lr) * step / settings.warmup_steps
    return min(settings.init_lr, settings.warmup_lr + rise)
