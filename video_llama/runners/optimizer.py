"""AdamW in two groups, and the generator of every random number of a step."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn

from video_llama.runners.settings import RunSettings

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
