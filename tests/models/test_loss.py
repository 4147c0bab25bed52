"""The loss in chunks is that of all logits, and so are its gradients."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from video_llama.models import language_model as module
from video_llama.models.language_model import linear_cross_entropy

TRANSPOSE = torch.ops.aten.t.default  # of the weights, which makes nothing
ROWS = torch.tensor([0, 3, 4, 7, 8, 9, 11])


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(12, 6, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(50, 6, generator=generator).to(dtype)
    return hidden, weight, torch.randint(0, 50, (len(ROWS),), generator=generator)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden[ROWS], weight).float(), targets)


@pytest.mark.parametrize("rows_per_chunk", [1, 3, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_loss_and_gradient_are_those_of_all_logits(
    rows_per_chunk: int,
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 50 * rows_per_chunk)
    hidden, weight, targets = inputs(dtype)
    expected = plain(hidden, weight, targets)
    (gradient,) = torch.autograd.grad(3 * expected, hidden)
    found = linear_cross_entropy(hidden, weight, targets, ROWS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    (of_hidden,) = torch.autograd.grad(3 * found, hidden)
    torch.testing.assert_close(of_hidden, gradient, atol=tolerance, rtol=0)
    assert gradient.abs().max() > 0.1


def test_an_output_layer_that_trains_has_its_gradient() -> None:
    hidden, weight, targets = inputs(torch.float32)
    weight.requires_grad_()
    (expected,) = torch.autograd.grad(plain(hidden, weight, targets), weight)
    (found,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, ROWS), weight)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_nothing_is_kept_for_a_gradient_that_nobody_wants() -> None:
    hidden, weight, targets = inputs(torch.float32)
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, targets, ROWS).requires_grad


class MadeLogits(TorchDispatchMode):
    """Notes how many rows of logits there are in any tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.shape[-1:] == (50,) and function is not TRANSPOSE:
            self.rows.append(len(made))
        return made


def test_no_more_than_a_chunk_of_logits_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 50 * 2)
    hidden, weight, targets = inputs(torch.float32)
    with MadeLogits() as made:
        linear_cross_entropy(hidden, weight, targets, ROWS).backward()
    assert set(made.rows) == {1, 2}
    with MadeLogits() as made:
        plain(hidden, weight, targets).backward()
    assert max(made.rows) == len(ROWS)
