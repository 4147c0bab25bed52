"""Learned patch positions of one picture size, for another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor


def resize_positions(learned: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Learned positions of one patch grid, resized bicubically for another one.

    Args:
        learned: (1, 1 + old rows * old columns, width), the class token first.
        old: rows and columns that were learned.
        new: rows and columns that are needed.

    Returns:
        (1, 1 + new rows * new columns, width).
    """
    grid = rearrange(learned[:, 1:], "1 (h w) d -> 1 d h w", h=old[0], w=old[1])
    resized = F.interpolate(grid.float(), size=new, mode="bicubic", align_corners=False)
    patches = rearrange(resized, "1 d h w -> 1 (h w) d").to(learned.dtype)
    return torch.cat([learned[:, :1], patches], dim=1)
