"""Tensors of the right name that can be no weight: refused by name before they are used."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.golden_model import build_golden, golden, weight
from video_llama.types import WeightsError


def part(prefix: str) -> dict[str, Tensor]:
    """The weights of a part of the golden model, without the prefix."""
    shapes = golden().parameters
    return {n.removeprefix(prefix): weight(n, shapes[n]) for n in shapes if n.startswith(prefix)}


def write(folder: Path, state: dict[str, Tensor]) -> str:
    torch.save({"model": state}, folder / "file.pth")
    return str(folder / "file.pth")


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        (
            "llama_proj.weight",
            torch.tensor(1.0),
            r"llama_proj\.weight has shape \[\] .* of another kind",
        ),
        (
            "llama_proj.bias",
            torch.ones(64).int(),
            r"llama_proj\.bias is of type torch\.int32, one of",
        ),
        ("llama_proj.bias", torch.ones(64, dtype=torch.cfloat), r"is of type torch\.complex64"),
        ("llama_proj.bias", torch.full((64,), torch.nan), r"bias holds values that are not finite"),
        ("llama_proj.bias", torch.full((64,), torch.inf), r"bias holds values that are not finite"),
    ],
)
def test_a_tensor_that_can_be_no_weight_is_refused(
    tmp_path: Path, name: str, bad: Tensor, message: str
) -> None:
    state = {f"llama_proj.{key}": value for key, value in part("llama_proj.").items()} | {name: bad}
    with pytest.raises(WeightsError, match=rf"model\.llama_proj_model: .*{message}"):
        build_golden(None, llama_proj_model=write(tmp_path, state))


@pytest.mark.parametrize("shape", [(), (5,), (1, 0, 32), (1, 1, 32)])
def test_positions_of_an_impossible_shape_are_refused(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    state = {**part("visual_encoder."), "pos_embed": torch.ones(shape)}
    with pytest.raises(WeightsError, match=r"pos_embed has shape"):
        build_golden(None, vit_ckpt=write(tmp_path, state))
