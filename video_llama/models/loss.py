"""The cross entropy of a frozen output layer, without the logits of all positions at once."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

CHUNK_BYTES = 1 << 24
"""Size of the fp32 logits that exist at a time: enough rows to keep a GPU busy."""


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
    """Mean cross entropy of `hidden @ weight.T` at some rows, whose logits are made in chunks.

    The gradient is computed together with the loss, while the logits of a chunk are there: nothing
    of the size of the vocabulary outlives its chunk, nothing is computed twice, and no copy of the
    hidden states is kept.

    Args:
        hidden: (N, D).
        weight: (V, D) of the output layer.
        targets: (R,) int64 classes.
        rows: (R,) int64, which rows of `hidden` are to predict them.

    Returns:
        The scalar loss, fp32.
    """
    apply: Any = _LinearCrossEntropy.apply
    loss: Tensor = apply(hidden, weight, targets, rows, torch.is_grad_enabled())
    return loss


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor, trains: bool
    ) -> Tensor:
        ctx.gradients = [
            torch.zeros_like(tensor) if trains and tensor.requires_grad else None
            for tensor in (hidden, weight)
        ]
        of_hidden, of_weight = ctx.gradients
        size = max(1, CHUNK_BYTES // (4 * len(weight)))
        total = torch.zeros((), device=hidden.device)
        for chunk, wanted in zip(rows.split(size), targets[:, None].split(size), strict=True):
            total += _add_chunk(hidden[chunk], weight, wanted, (chunk, of_hidden), of_weight)
        ctx.scale = 1 / len(rows)
        return total / len(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, []
        factor = upstream * ctx.scale
        scaled = (g if g is None else g.mul_(factor) for g in gradients)
        return *scaled, None, None, None


def _add_chunk(
    inputs: Tensor,
    weight: Tensor,
    wanted: Tensor,
    of_hidden: tuple[Tensor, Tensor | None],
    of_weight: Tensor | None,
) -> Tensor:
    """The summed loss of some rows; gradients go to their rows in `of_hidden`, and to `of_weight`.

    A function of its own, so that the logits are gone before those of the next chunk come.
    """
    logits = F.linear(inputs, weight).float()
    picked = logits.gather(1, wanted)
    largest = logits.amax(dim=1, keepdim=True)
    sums = logits.sub_(largest).exp_().sum(dim=1, keepdim=True)
    loss = (sums.log() + largest - picked).sum()
    rows, gradients = of_hidden
    if gradients is None and of_weight is None:
        return loss
    gradient = logits.div_(sums).scatter_add_(1, wanted, -torch.ones_like(picked)).to(weight.dtype)
    if gradients is not None:
        gradients[rows] = gradient @ weight
    if of_weight is not None:
        of_weight.addmm_(gradient.T, inputs)
    return loss
