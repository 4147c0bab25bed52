"""The arithmetic of a run: precision, optimiser, seeds and learning rates.

Seeds and learning rates are pure functions of the global step, so that resuming needs no state.
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

NO_DECAY = ("bias", "ln", "bn")
"""Parts of a name whose parameter is not decayed, as in the original."""

OWN_OPTIONS = ("weight_decay", "betas", "lr_scale")
"""Options of a group that follow the settings, also where a run goes on with others."""

LORA = ".lora_"
"""Part of a name whose parameter belongs to an adapter of the language model."""

MixedPrecision = Literal["no", "bf16", "fp16"]


def mixed_precision(*, amp: bool, device: torch.device) -> MixedPrecision:
    """Choose what `run.amp` means on a device.

    Returns:
        "bf16" where the device computes it, "fp16" (with a gradient scaler) on other GPUs, "no" on
        CPUs.
    """
    if not amp:
        return "no"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "mps":
        return "bf16"
    # Most CPUs only emulate bf16, and some virtual ones announce instructions that do not work.
    logger.info("run.amp has no effect on %s: computing in fp32", device.type)
    return "no"


def build_accelerator(settings: RunSettings, *, device: torch.device, folder: Path) -> Accelerator:
    """Build accelerate's part of a run: DDP, mixed precision, accumulation and tracker."""
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


def parameter_groups(
    named: Iterable[tuple[str, nn.Parameter]], weight_decay: float, *, lora_scale: float = 1.0
) -> list[dict[str, Any]]:
    """Split what trains into groups: decayed, not decayed, LoRA. An empty one is left out.

    Args:
        lora_scale: learning rate of LoRA over that of the others.
    """
    parameters = list(named)
    lora = [pair for pair in parameters if LORA in pair[0]]
    decayed: list[tuple[str, nn.Parameter]] = []
    others: list[tuple[str, nn.Parameter]] = []
    for name, parameter in parameters:
        if LORA in name:
            continue
        is_decayed = parameter.ndim >= 2 and not any(mark in name for mark in NO_DECAY)
        (decayed if is_decayed else others).append((name, parameter))
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": others, "weight_decay": 0.0},
        {"params": lora, "weight_decay": weight_decay, "lr_scale": lora_scale},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(
    named: Iterable[tuple[str, nn.Parameter]], settings: RunSettings
) -> torch.optim.AdamW:
    """Build AdamW for what trains, fused where the device has a fused kernel."""
    # Betas and epsilon are torch's defaults, as in the original, unless beta2 is set.
    parameters = list(named)
    return torch.optim.AdamW(
        parameter_groups(parameters, settings.weight_decay, lora_scale=lora_scale(settings)),
        lr=settings.init_lr,
        betas=(0.9, settings.beta2),
        fused=all(parameter.device.type in ("cpu", "cuda", "mps") for _, parameter in parameters),
    )


def lora_scale(settings: RunSettings) -> float:
    """Return the learning rate of an adapter over that of the branch."""
    if settings.lora_lr is None or not settings.init_lr:
        return 1.0
    return settings.lora_lr / settings.init_lr


def step_seed(seed: int, step: int, rank: int) -> int:
    """Derive the seed of the random numbers (dropout) of one step in one process.

    A resumed run so draws what an uninterrupted one does, and no generator's state is saved.
    """
    # Hashed, because a sum of the three would be the same for many of them.
    digest = hashlib.blake2b(struct.pack("<QQQ", seed, step, rank), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1  # torch takes 63 bits everywhere


Schedule = Callable[[int, RunSettings], float]

SCHEDULES: Registry[Schedule] = Registry("learning-rate schedule")
"""`run.lr_sched` to the function."""


def learning_rate(step: int, settings: RunSettings) -> float:
    """Compute the learning rate of a step; `step` steps of the whole run are done before."""
    return SCHEDULES.get(settings.lr_sched)(step, settings)


@SCHEDULES.register("linear_warmup_cosine_lr")
def warmup_cosine(step: int, settings: RunSettings) -> float:
    """Rise in a line from warmup_lr to init_lr, then fall in half a cosine to min_lr.

    Warm-up counts the steps of the whole run, where the original starts it anew in every epoch.
    """
    if step < settings.warmup_steps:
        return _warmup(step, settings)
    # As in the original, the cosine counts from the start of the run: warm-up hides its beginning,
    # and there is a small drop where the two meet.
    phase = math.pi * step / settings.num_steps
    swing = (settings.init_lr - settings.min_lr) * 0.5 * (1 + math.cos(phase))
    return settings.min_lr + swing


@SCHEDULES.register("linear_warmup_step_lr")
def warmup_step(step: int, settings: RunSettings) -> float:
    """Rise in a line to init_lr, then fall by lr_decay_rate per epoch, not below min_lr."""
    if step < settings.warmup_steps:
        return _warmup(step, settings)
    epoch = step // settings.iters_per_epoch
    return max(settings.min_lr, settings.init_lr * settings.lr_decay_rate**epoch)


def _warmup(step: int, settings: RunSettings) -> float:
    # Never above init_lr, also where warmup_lr is higher.
    rise = (settings.init_lr - settings.warmup_lr) * step / settings.warmup_steps
    return min(settings.init_lr, settings.warmup_lr + rise)
