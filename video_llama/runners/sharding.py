"""A frozen language model that is too large for one device, spread over all of them (FSDP2)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard


def shard_language_model(model: nn.Module, *, device: torch.device, num_processes: int) -> None:
    """Give each process an equal part of every layer, which are gathered when they are needed.

    The word table and the output layer are called on their own and are small beside the layers:
    each process keeps them whole. The model has to lie on the host: every layer goes to the device
    on its own, so that the whole is never there.

    Args:
        model: a frozen LLaMA, on the CPU; changed in place.
        device: of this process.
        num_processes: over which it is spread.
    """
    llama: Any = model
    mesh = init_device_mesh(device.type, (num_processes,))
    for layer in llama.model.layers:
        fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    table = llama.model.embed_tokens
    whole = {*table.parameters(), *llama.lm_head.parameters()}
    fully_shard(llama.model, mesh=mesh, reshard_after_forward=True, ignored_params=whole)
    for part in (table, llama.lm_head, llama.model.rotary_emb):
        part.to(device)
