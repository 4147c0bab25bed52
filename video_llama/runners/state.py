"""What a run is made of: everything that the runner is given, and knows no more about."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from video_llama.runners.task import TextFromMedia
from video_llama.types import Batch


@dataclass(kw_only=True)
class RunParts:
    """The parts of a run, built from one configuration."""

    task: TextFromMedia
    """One step of training or evaluation; holds the model."""
    trainable: list[tuple[str, nn.Parameter]]
    """What trains, under the names of the branch file."""
    train_batches: Callable[[int, int], Iterable[Batch]]
    """The batches of this process for the steps from start to stop."""
    eval_batches: dict[str, Callable[[], Iterable[Batch]]]
    """The batches of this process for each split that is evaluated."""
    data_sets: list[str]
    """Names of the data sets."""
    write_branch: Callable[[Path, int], None]
    """Writes the branch file after a number of steps."""
    identity: dict[str, Any]
    """What a resumed run must have in common with this one; see `check_unchanged`."""
    config: str
    """The resolved YAML."""


class TrainedPart(nn.Module):
    """What is wrapped for distributed training: the parameters that train, and nothing else.

    Its forward runs the whole model, but DistributedDataParallel sees only the branch: the frozen
    parts are neither broadcast at the start nor looked at in a step, whatever they are made of
    (quantised or sharded too).

    Args:
        task: whose `train_step` is the forward.
        parameters: what trains.
    """

    def __init__(self, task: TextFromMedia, parameters: Iterable[nn.Parameter]) -> None:
        super().__init__()
        self.trained = nn.ParameterList(parameters)
        self._step = task.train_step  # a bound method, not a sub-module

    def forward(self, batch: Batch) -> Tensor:
        """The loss of a batch."""
        return self._step(batch)


def load_branch(trainable: Iterable[tuple[str, nn.Parameter]], tensors: dict[str, Tensor]) -> None:
    """Put saved values into the parameters that train, which must be the same ones."""
    named = dict(trainable)
    if named.keys() != tensors.keys():
        raise ValueError(f"the names differ: {sorted(named.keys() ^ tensors.keys())[:4]}")
    with torch.no_grad():
        for name, parameter in named.items():
            parameter.copy_(tensors[name])
