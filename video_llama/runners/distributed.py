"""The processes of a run, how they talk to each other, and a language model spread over them."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from video_llama.types import ConfigError, VideoLlamaError

T = TypeVar("T")


# The words of gloo and NCCL for a peer that is gone; torch has no type of error for it.
_LOST = ("closed by peer", "reset by peer", "Broken pipe", "communicator was aborted", "NCCL")


def is_lost_peer(error: RuntimeError) -> bool:
    """Whether an error means that another process has ended, which has reported why."""
    return isinstance(error, dist.DistError) or any(text in str(error) for text in _LOST)


class ProcessGroup:
    """The processes that torchrun has started, or this one alone.

    Args:
        device: "cuda", "cuda:N" (one process only), "mps" or "cpu".

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
        """Sum each figure over the processes; the names must be the same everywhere."""
        if self.size == 1:
            return dict(figures)
        # Sums of many tokens need double precision, which MPS lacks.
        kind = torch.float32 if self.device.type == "mps" else torch.float64
        values = torch.tensor(list(figures.values()), dtype=kind, device=self.device)
        dist.all_reduce(values)
        return dict(zip(figures, values.tolist(), strict=True))

    def gather(self, values: list[T]) -> list[T]:
        """Return the values of all processes, ordered by rank, in every process."""
        if self.size == 1:
            return list(values)
        gathered: list[Any] = [None] * self.size
        dist.all_gather_object(gathered, values)
        return [value for of_rank in gathered for value in of_rank]

    def on_main(self, function: Callable[[], T]) -> T:
        """Call `function` in the main process, and return its result in every process.

        Raises:
            VideoLlamaError: it raised one, or an error of the system; then every process does.
        """
        outcome: list[Any] = [None, None]
        if self.is_main:
            try:
                outcome[0] = function()
            except (VideoLlamaError, OSError) as error:
                # The other processes wait for the outcome: an error they never hear of is a hang.
                outcome[1] = error
        if self.size > 1:
            dist.broadcast_object_list(outcome, src=0)
        if outcome[1] is not None:
            raise outcome[1]
        value: T = outcome[0]
        return value

    def close(self) -> None:
        """Wait for the other processes, so that none ends while another still talks to it.

        The group is not destroyed: torch may deadlock while it does so (see `train.py`).
        """
        if self.size > 1:
            dist.barrier()


def shard_language_model(model: nn.Module, *, device: torch.device, num_processes: int) -> None:
    """Give each process an equal shard of every layer (FSDP2); a layer is gathered for its use.

    The embedding table and the output layer are called on their own and are small beside the
    layers, so each process keeps them whole. The model must be on the host: layers go to the device
    one by one, so that the whole model is never there.
    """
    llama: Any = model
    mesh = init_device_mesh(device.type, (num_processes,))
    # Freed after the forward and gathered again for the backward: one whole layer at a time.
    for layer in llama.model.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    # Called outside of the model's forward, where FSDP would not gather them.
    table = llama.model.embed_tokens
    whole = {*table.parameters(), *llama.lm_head.parameters()}
    fully_shard(llama.model, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    for part in (table, llama.lm_head, llama.model.rotary_emb):
        part.to(device)
