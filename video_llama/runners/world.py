"""The processes of a run, and what they tell one another."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState

from video_llama.types import ConfigError, VideoLlamaError

T = TypeVar("T")


_LOST = ("closed by peer", "reset by peer", "Broken pipe", "communicator was aborted", "NCCL")


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether an error means that another process has ended, which has said why."""
    return isinstance(error, dist.DistError) or any(text in str(error) for text in _LOST)


class World:
    """The processes that torchrun has started, or this one alone.

    Args:
        device: "cuda", "cuda:N" (one process only), "mps" or "cpu".

    Attributes:
        rank: of this process.
        size: how many there are.
        device: of this process.

    Raises:
        ConfigError: one numbered GPU for several processes.
    """

    def __init__(self, device: str) -> None:
        if device.startswith("cuda:"):
            if int(os.environ.get("WORLD_SIZE", "1")) > 1:
                raise ConfigError(
                    f"run.device: {device} given with several processes, which need a GPU each; "
                    "use cuda, and CUDA_VISIBLE_DEVICES to choose"
                )
            torch.cuda.set_device(device)
        # accelerate keeps its state per process; a second run may need another precision or device.
        AcceleratorState._reset_state(reset_partial_state=not dist.is_initialized())
        GradientState._reset_state()
        state = PartialState(cpu=device == "cpu")
        self.rank: int = state.process_index
        self.size: int = state.num_processes
        self.device: torch.device = state.device

    @property
    def is_main(self) -> bool:
        """Whether this is the process that writes files."""
        return self.rank == 0

    def sum(self, figures: dict[str, float]) -> dict[str, float]:
        """The sum over the processes of each figure; the names must be the same everywhere."""
        if self.size == 1:
            return dict(figures)
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        values = torch.tensor(list(figures.values()), dtype=kind, device=self.device)
        dist.all_reduce(values)
        return dict(zip(figures, values.tolist(), strict=True))

    def gather(self, values: list[T]) -> list[T]:
        """The values of all processes, in the order of their ranks, in every process."""
        if self.size == 1:
            return list(values)
        parts: list[Any] = [None] * self.size
        dist.all_gather_object(parts, values)
        return [value for part in parts for value in part]

    def on_main(self, function: Callable[[], T]) -> T:
        """What `function` gives in the main process, in every process.

        Raises:
            VideoLlamaError: it raised one; then every process does.
        """
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = function()
            except VideoLlamaError as error:
                outcome[1] = error
        if self.size > 1:
            dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        value: T = outcome[0]
        return value

    def close(self) -> None:
        """Wait for the others, so that none ends while another still talks to it.

        The group is left as it is: torch may deadlock while it takes one down (see `train.py`).
        """
        if self.size > 1:
            dist.barrier()
