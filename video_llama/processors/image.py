"""Pictures: loading, and what training and chat make of them."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from video_llama.processors.files import check_file
from video_llama.processors.settings import ImageSettings, ImageTrainSettings
from video_llama.processors.transforms import normalise, random_crop_box, require_generator
from video_llama.types import MediaError

MAX_PICTURE_PIXELS = 178_956_970
"""Largest picture that is unpacked: 512 MiB of RGB. Pillow's own limit for a sure attack."""

# Only what people have pictures in (the MPO of phones counts as JPEG): Pillow would hand EPS to
# an external program.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

_BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError),
    *(struct.error, zlib.error, MemoryError, RuntimeError),
)
"""What Pillow raises on a damaged file, found by feeding it some."""


class ImageProcessor:
    """`blip2_image_train` (random crop) and `blip2_image_eval` (whole picture) of the original.

    Args:
        settings: size and normalisation; the training settings ask for a random crop.
    """

    def __init__(self, settings: ImageSettings) -> None:
        self.settings = settings

    def __call__(
        self, picture: str | Path | Image.Image, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """A picture as the model takes it.

        Args:
            picture: a file, or a picture in memory.
            generator: source of the random crop; needed for training only.

        Returns:
            (3, size, size) float32, normalised.

        Raises:
            MediaError: the file is no picture that can be read.
        """
        image = to_rgb(picture) if isinstance(picture, Image.Image) else load_image(picture)
        size = self.settings.image_size
        if isinstance(self.settings, ImageTrainSettings):
            scale = (self.settings.min_scale, self.settings.max_scale)
            random = require_generator(generator, self.settings.name)
            crop = random_crop_box(image.height, image.width, scale=scale, generator=random)
            # Cropped first: with `resize(box=...)` pixels outside the box would have a part in it.
            image = image.crop((crop.left, crop.top, crop.right, crop.bottom))
        image = image.resize((size, size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return normalise(pixels, mean=self.settings.mean, std=self.settings.std)


def load_image(path: str | Path) -> Image.Image:
    """A picture file as RGB, upright, its first frame if it is animated.

    Args:
        path: AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PPM, TIFF or WebP.

    Raises:
        MediaError: it cannot be read as a picture, or is too large to unpack.
    """
    absolute = check_file(path)
    try:
        with Image.open(absolute, formats=_FORMATS) as image:
            if image.width * image.height > MAX_PICTURE_PIXELS:
                raise MediaError(path, _too_large(image.width, image.height))
            return to_rgb(image)
    except UnidentifiedImageError as error:
        raise MediaError(path, f"it is not a picture in one of {', '.join(_FORMATS)}") from error
    except Image.DecompressionBombError as error:
        raise MediaError(path, f"it has more than {MAX_PICTURE_PIXELS} pixels") from error
    except _BROKEN as error:
        raise MediaError(path, f"the picture is damaged ({error})") from error


def to_rgb(image: Image.Image) -> Image.Image:
    """Any picture as 8-bit RGB: turned upright, transparency on white, 16-bit grey scaled.

    Args:
        image: of any mode.
    """
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        # Pillow's own conversion clips at 255, which turns nearly every such picture white.
        image = Image.fromarray((np.array(image) >> 8).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def picture_size(path: Path) -> tuple[int, int] | None:
    """Width and height of a still picture; None for anything else, also for an animated GIF.

    Args:
        path: a file that exists.

    Raises:
        MediaError: the picture is too large to unpack.
    """
    try:
        with Image.open(path, formats=_FORMATS) as image:
            moving = image.format == "GIF" and getattr(image, "is_animated", False)
            return None if moving else image.size
    except Image.DecompressionBombError as error:
        raise MediaError(path, f"it has more than {MAX_PICTURE_PIXELS} pixels") from error
    except _BROKEN:
        return None


def _too_large(width: int, height: int) -> str:
    return f"{width}x{height} pixels are too many, at most {MAX_PICTURE_PIXELS} are unpacked"
