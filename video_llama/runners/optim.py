"""The arithmetic of a run: mixed precision where the device gains from it.

AdamW in two groups, and the generator of every random number of a step.

Learning-rate schedules: pure functions of the global step, so that resuming needs no state.
"""

from __future__ import annotations

import hashlib
import logging
import math
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import ProjectConfiguration
from torch import nn

from video_llama.common.registry import Registry
from video_llama.runners.settings import RunSettings

logger = logging.getLogger(__name__)

MixedPrecision = Literal["no", "bf16", "fp16"]


def mixed_precision(*, amp: bool, device: torch.device) -> MixedPrecision:
    """What `run.amp` means on a device.

    Args:
        amp: whether mixed precision is wanted.
        device: where the run is.

    Returns:
        "bf16" where the device computes it; "fp16" (with a gradient scaler) on other GPUs; "no" on
        CPUs, most of which only emulate bf16 (and some virtual ones announce instructions for it
        that end the process).
    """
    if not amp:
        return "no"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "mps":
        return "bf16"
    logger.info("run.amp has no effect on %s: computing in fp32", device.type)
    return "no"


def build_accelerator(settings: RunSettings, *, device: torch.device, folder: Path) -> Accelerator:
    """Accelerate's part of a run: device, DDP, mixed precision, accumulation and tracker.

    Args:
        settings: `amp` and `accum_grad_iters` are read.
        device: of this process, from `World`.
        folder: of the run, where the tracker writes.
    """
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=mixed_precision(amp=settings.amp, device=device),
        gradient_accumulation_steps=settings.accum_grad_iters,
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
        kwargs_handlers=[
            # Every trained parameter takes part in every step, and there are no buffers. A static
            # graph has to begin with a step that synchronises, which accumulation does not.
            DistributedDataParallelKwargs(
                find_unused_parameters=False,
                static_graph=settings.accum_grad_iters == 1,
                gradient_as_bucket_view=True,
            )
        ],
    )


NO_DECAY = ("bias", "ln", "bn")
"""Parts of a name whose parameter is not decayed, as in the original."""


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: to matrices and tables, by the original's rule.

    Args:
        name: the original's name of the parameter.
        parameter: it.
    """
    return parameter.ndim >= 2 and not any(mark in name for mark in NO_DECAY)


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float
) -> list[dict[str, Any]]:
    """Two groups for an optimiser: decayed, and not decayed. An empty one is left out.

    Args:
        named: names and parameters of everything that trains.
        weight_decay: of the first group.
    """
    decayed: list[tuple[str, nn.Parameter]] = []
    others: list[tuple[str, nn.Parameter]] = []
    for name, parameter in named:
        (decayed if is_decayed(name, parameter) else others).append((name, parameter))
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    named: Iterable[tuple[str, nn.Parameter]], settings: RunSettings
) -> torch.optim.AdamW:
    """AdamW for what trains, fused where the device has a fused kernel.

    Args:
        named: names and parameters, all on one device.
        settings: `weight_decay`, `beta2` and `init_lr` are read.
    """
    parameters = list(named)
    return torch.optim.AdamW(
        parameter_groups(parameters, settings.weight_decay),
        lr=settings.init_lr,
        betas=(0.9, settings.beta2),
        fused=all(parameter.device.type in ("cpu", "cuda", "mps") for _, parameter in parameters),
    )


def step_seed(seed: int, step: int, rank: int) -> int:
    """The seed of the random numbers (dropout) of one step in one process.

    A function of these three alone: a resumed run draws what an uninterrupted one does, without any
    generator's state being saved.

    Args:
        seed: `run.seed`.
        step: steps done before, over the whole run.
        rank: of the process.
    """
    digest = hashlib.blake2b(struct.pack("<QQQ", seed, step, rank), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch takes 63 bits everywhere


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
