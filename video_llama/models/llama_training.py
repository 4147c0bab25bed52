"""Training through the frozen LLaMA: packing without padding, and recomputed activations."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, cast

import video_llama.common.compat

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import AttentionInterface, AttentionMaskInterface, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

PACKED_ATTENTION = "sdpa_by_segments"
"""Name under which transformers knows the attention."""


def allow_packing(model: LlamaForCausalLM) -> None:
    """Let a language model take `packed_hidden_states`; all other calls stay as they are."""
    # transformers passes unknown arguments of the model on to the attention: so it gets `segments`.
    AttentionInterface.register(PACKED_ATTENTION, attend_by_segments)
    AttentionMaskInterface.register(PACKED_ATTENTION, sdpa_mask)
    model.config._attn_implementation = PACKED_ATTENTION


def allows_packing(model: LlamaForCausalLM) -> bool:
    """Whether a language model takes `packed_hidden_states`."""
    return bool(model.config._attn_implementation == PACKED_ATTENTION)


def packed_hidden_states(model: LlamaForCausalLM, embeddings: Tensor, mask: Tensor) -> Tensor:
    """Run the layers on rows packed into one, without their padding.

    Every segment has positions from 0 and attends to itself only, so the values are those of the
    padded rows.

    Args:
        model: after `allow_packing`.
        embeddings: (B, L, D).
        mask: (B, L) bool, False where padded; N are not.

    Returns:
        (N, D), the rows one after the other.
    """
    # Rotary positions count anew in each segment, so that a row does not depend on its place.
    lengths = mask.sum(dim=1)
    positions = (mask.long().cumsum(dim=1)[mask] - 1).to(embeddings.device)
    packed: Tensor = model.model(
        inputs_embeds=embeddings[mask][None],
        position_ids=positions[None],
        # Of the shape that transformers takes as it is: the segments say what a mask would.
        attention_mask=torch.ones(1, 1, 1, 1, dtype=torch.bool, device=embeddings.device),
        use_cache=False,
        segments=lengths[lengths > 0].tolist(),
    ).last_hidden_state
    return packed[0]


def attend_by_segments(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    segments: Sequence[int] | None = None,
    **options: Any,
) -> tuple[Tensor, None]:
    """Attend causally within segments; as SDPA does where none are given.

    On GPUs in half precision one kernel takes all segments, where torch has it. Elsewhere they are
    taken one by one. That costs nothing on a CPU: no mask is made, and no product is computed that
    a mask would hide. `query` is (1, H, N, d), `key` and `value` are (1, H_kv, N, d), and the
    lengths in `segments` add up to N.

    Returns:
        (1, N, H, d), and no attention weights.
    """
    if segments is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **options)
    scale = options["scaling"]
    if _has_kernel(query):
        return _in_one_kernel(query, key, value, segments, scale), None
    # Each segment alone is plain causal attention, for which SDPA needs no mask.
    grouped = key.shape[1] != query.shape[1]
    rows = zip(
        *(states.split(list(segments), dim=2) for states in (query, key, value)), strict=True
    )
    outputs = [
        F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=grouped)
        for q, k, v in rows
    ]
    return torch.cat(outputs, dim=2).transpose(1, 2), None


def _has_kernel(query: Tensor) -> bool:
    # FlashAttention: half precision, Ampere or later; older torch has no interface for it.
    half = query.dtype in (torch.float16, torch.bfloat16)
    if not (query.is_cuda and half and torch.cuda.get_device_capability(query.device) >= (8, 0)):
        return False
    return importlib.util.find_spec("torch.nn.attention.varlen") is not None


def _in_one_kernel(
    query: Tensor, key: Tensor, value: Tensor, segments: Sequence[int], scale: float
) -> Tensor:
    from torch.nn.attention.varlen import varlen_attn

    # The kernel takes all segments at once, given where each of them ends.
    ends = torch.tensor([0, *segments]).cumsum(dim=0).to(query.device, torch.int32)
    q, k, v = (states[0].transpose(0, 1) for states in (query, key, value))
    output = varlen_attn(
        *(q, k, v),
        cu_seq_q=ends,
        cu_seq_k=ends,
        max_q=max(segments),
        max_k=max(segments),
        scale=scale,
        window_size=(-1, 0),  # causal
        enable_gqa=key.shape[1] != query.shape[1],
    )
    return cast(Tensor, output)[None]


def recompute_activations(model: LlamaForCausalLM) -> None:
    """Keep only the input of each layer for the backward pass, and recompute the rest there.

    The language model is frozen, but the gradient of the branch flows through all of it, and its
    activations are most of the memory of a step. transformers does this only in training mode, and
    a frozen model is never in it.
    """
    # Layer by layer: the peak is then one layer's activations beside the inputs of all.
    for layer in model.model.layers:
        # Nothing in a frozen layer is random, so no generator's state has to be kept for it. The
        # dropout of an adapter has to draw the same again.
        is_random = any(isinstance(part, nn.Dropout) and part.p > 0 for part in layer.modules())
        layer.forward = partial(_recomputed, layer.forward, is_random)


def _recomputed(forward: Callable[..., Any], is_random: bool, *args: Any, **kwargs: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    return checkpoint(forward, *args, use_reentrant=False, preserve_rng_state=is_random, **kwargs)
