"""Less memory in training: activations of the language model that are computed twice."""

from __future__ import annotations

from typing import Any

import video_llama.compat

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import LlamaForCausalLM


def recompute_activations(model: LlamaForCausalLM) -> None:
    """Keep only the input of each layer for the backward pass, and compute the rest again there.

    The language model is frozen, but the gradient of the branch flows through all of it, and its
    activations are most of the memory of a step. transformers does this in training mode only,
    which a frozen model is never in.

    Args:
        model: changed in place; calls without gradients are as before.
    """
    for layer in model.model.layers:
        _recompute(layer)


def _recompute(layer: nn.Module) -> None:
    forward = layer.forward

    def twice(*args: Any, **kwargs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*args, **kwargs)
        # Nothing in a frozen layer is random, so no generator's state has to be kept for it.
        return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=False, **kwargs)

    layer.forward = twice
