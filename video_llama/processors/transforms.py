"""Crops and normalisation that pictures and clips share. Nothing here uses global random state."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ASPECT_RATIOS = (3 / 4, 4 / 3)
"""Range of width / height of a random crop."""


class CropBox(NamedTuple):
    """A part of a picture, in pixels."""

    top: int
    left: int
    height: int
    width: int

    @property
    def right(self) -> int:
        """First column behind the box."""
        return self.left + self.width

    @property
    def bottom(self) -> int:
        """First row below the box."""
        return self.top + self.height


def random_crop_box(
    height: int, width: int, *, scale: tuple[float, float], generator: torch.Generator
) -> CropBox:
    """A random part of a picture, drawn in the order of torchvision's RandomResizedCrop.

    With a generator of the same seed the box is therefore the same as torchvision's.

    Args:
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        scale: smallest and largest share of the picture's area.
        generator: source of the random numbers.

    Returns:
        The box; after ten misses the largest one in the middle with an allowed aspect ratio.
    """
    low, high = (math.log(ratio) for ratio in ASPECT_RATIOS)
    for _ in range(10):
        area = height * width * torch.empty(1).uniform_(*scale, generator=generator).item()
        ratio = math.exp(torch.empty(1).uniform_(low, high, generator=generator).item())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = torch.randint(0, height - h + 1, (1,), generator=generator).item()
            left = torch.randint(0, width - w + 1, (1,), generator=generator).item()
            return CropBox(int(top), int(left), h, w)
    w = min(width, round(height * ASPECT_RATIOS[1]))
    h = min(height, round(width / ASPECT_RATIOS[0]))
    return CropBox((height - h) // 2, (width - w) // 2, h, w)


def crop_and_resize(frames: Tensor, box: CropBox, size: int) -> Tensor:
    """The same part of every frame, resized by bicubic interpolation without antialiasing.

    Bicubic interpolation overshoots at edges; the result is clamped before it becomes uint8 (the
    original let it wrap round) and then truncated, as the original did.

    Args:
        frames: (3, T, H, W) uint8.
        box: the part.
        size: height and width of the result, in pixels.

    Returns:
        (3, T, size, size) uint8.
    """
    part = frames[:, :, box.top : box.bottom, box.left : box.right].float()
    resized = F.interpolate(part, size=(size, size), mode="bicubic", align_corners=False)
    return resized.clamp_(0, 255).to(torch.uint8)


def normalise(pixels: Tensor, *, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(x / 255 - mean) / std for each colour.

    Args:
        pixels: (3, ..., H, W) uint8.
        mean: of red, green and blue, on the scale 0..1.
        std: likewise.

    Returns:
        float32 of the same shape, contiguous.
    """
    shape = (3, *[1] * (pixels.ndim - 1))
    result = pixels.to(torch.float32, memory_format=torch.contiguous_format).div_(255)
    return result.sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(std).view(shape))


def require_generator(generator: torch.Generator | None, name: str) -> torch.Generator:
    """The generator, which a random processor cannot do without.

    Raises:
        ValueError: none was given.
    """
    if generator is None:
        raise ValueError(
            f"{name} is random and got no generator; pass torch.Generator().manual_seed(n), "
            "so that a run can be repeated"
        )
    return generator
