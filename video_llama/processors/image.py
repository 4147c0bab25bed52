"""Turn, crop, resize and normalise pictures and frames, without any global random state."""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol, cast

import numpy as np
import torch
import torch.nn.functional as F
from av.buffer import Buffer
from av.filter import Graph
from av.video.frame import VideoFrame
from PIL import Image
from torch import Tensor

from video_llama.processors.picture_file import load_image, to_rgb

ASPECT_RATIOS = (3 / 4, 4 / 3)
"""Range of width / height of a random crop."""


class PictureOptions(Protocol):
    """What the processors read of their settings; `settings.PictureSettings` provides it."""

    __dataclass_fields__: ClassVar[dict[str, Any]]
    name: str
    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    @property
    def crop_scale(self) -> tuple[float, float] | None:
        """Smallest and largest share of the area that a random crop keeps; None: no crop."""


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
    """Draw a random part of a picture in the order of torchvision's RandomResizedCrop.

    With a generator of the same seed the box is therefore the same as torchvision's.

    Args:
        height: of the picture, in pixels.
        width: of the picture, in pixels.
        scale: smallest and largest share of the picture's area.

    Returns:
        The box; after ten misses the largest one in the middle with an allowed aspect ratio.
    """
    # Ratios are drawn on a logarithmic scale, so that wide and tall boxes are equally likely.
    low, high = (math.log(ratio) for ratio in ASPECT_RATIOS)
    for _ in range(10):
        area = height * width * torch.empty(1).uniform_(*scale, generator=generator).item()
        ratio = math.exp(torch.empty(1).uniform_(low, high, generator=generator).item())
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            top = torch.randint(0, height - h + 1, (1,), generator=generator).item()
            left = torch.randint(0, width - w + 1, (1,), generator=generator).item()
            return CropBox(int(top), int(left), h, w)
    # Very long pictures: no box of an allowed ratio was drawn that fits.
    w = min(width, round(height * ASPECT_RATIOS[1]))
    h = min(height, round(width / ASPECT_RATIOS[0]))
    return CropBox((height - h) // 2, (width - w) // 2, h, w)


def crop_and_resize(frames: Tensor, box: CropBox, size: int) -> Tensor:
    """Cut the same part of every frame and resize it by bicubic interpolation without antialiasing.

    Bicubic interpolation overshoots at edges; the result is clamped before it becomes uint8 (the
    original let it wrap round) and then truncated, as the original did.

    Args:
        frames: (3, T, H, W) uint8.
        size: height and width of the result, in pixels.

    Returns:
        (3, T, size, size) uint8.
    """
    part = frames[:, :, box.top : box.bottom, box.left : box.right].float()
    # On float, because torch rounds on uint8 and the original truncated.
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
    """Return the generator, which a random processor cannot do without.

    Raises:
        ValueError: none was given.
    """
    if generator is None:
        raise ValueError(
            f"{name} is random and got no generator; pass torch.Generator().manual_seed(n), "
            "so that a run can be repeated"
        )
    return generator


class ImageProcessor:
    """`blip2_image_train` (random crop) and `blip2_image_eval` (whole picture) of the original.

    Args:
        settings: size and normalisation; the training settings ask for a random crop.
    """

    def __init__(self, settings: PictureOptions) -> None:
        self.settings = settings

    def __call__(
        self, picture: str | Path | Image.Image, *, generator: torch.Generator | None = None
    ) -> Tensor:
        """Turn a picture into what the model takes.

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
        if (scale := self.settings.crop_scale) is not None:
            random = require_generator(generator, self.settings.name)
            crop = random_crop_box(image.height, image.width, scale=scale, generator=random)
            # Cropped first: with `resize(box=...)` pixels outside the box would have a part in it.
            image = image.crop((crop.left, crop.top, crop.right, crop.bottom))
        image = image.resize((size, size), Image.Resampling.BICUBIC)
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)
        return normalise(pixels, mean=self.settings.mean, std=self.settings.std)


Orientation = tuple[int, int, int, int]
"""Signs (a, b, c, d) of a display matrix.

The matrix takes the pixel at (x, y) to (a x + c y, b x + d y); y points down.
"""

_UPRIGHT = (1, 0, 0, 1)

_FILTERS: dict[Orientation, list[tuple[str, str]]] = {
    _UPRIGHT: [],
    (-1, 0, 0, 1): [("hflip", "")],
    (1, 0, 0, -1): [("vflip", "")],
    (-1, 0, 0, -1): [("hflip", ""), ("vflip", "")],
    (0, 1, -1, 0): [("transpose", "clock")],
    (0, -1, 1, 0): [("transpose", "cclock")],
    (0, 1, 1, 0): [("transpose", "cclock_flip")],
    (0, -1, -1, 0): [("transpose", "clock_flip")],
}
"""FFmpeg's filters that show a frame as its display matrix asks for."""


class FrameScaler:
    """Turns and resizes decoded frames as decord does, to the bit.

    Args:
        height: of the result, in pixels.
        width: likewise.
    """

    def __init__(self, *, height: int, width: int) -> None:
        self._size = (height, width)
        self._graph: tuple[object, Graph] | None = None

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """Return (H, W, 3) uint8, RGB, upright."""
        orientation = _orientation(frame)
        # Setting up filters takes longer than using them, and frames are mostly alike.
        kind = (frame.width, frame.height, frame.format.name, orientation)
        if self._graph is None or self._graph[0] != kind:
            self._graph = (kind, _graph(frame, orientation, *self._size))
        graph = self._graph[1]
        graph.push(frame)
        scaled = graph.pull()
        assert isinstance(scaled, VideoFrame)
        return scaled.to_ndarray()


def is_upright(frame: VideoFrame) -> bool:
    """Tell whether a frame is shown as it is stored, neither turned nor mirrored."""
    return _orientation(frame) == _UPRIGHT


def _orientation(frame: VideoFrame) -> Orientation:
    """Return the signs (a, b, c, d) of the display matrix nearest to that of a frame."""
    side = frame.side_data.get("DISPLAYMATRIX")
    if side is None:
        return _UPRIGHT
    # Nine fixed-point numbers; signs and places of the largest four are all that matters, as the
    # frame is resized anyway.
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(cast(Buffer, side))[:36])
    # A turn by an odd angle goes to the nearest quarter, as players without that ability do.
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
    return (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)


def _graph(frame: VideoFrame, orientation: Orientation, height: int, width: int) -> Graph:
    """Return filters that turn and resize frames like this one, those that decord uses."""
    # decord has these filters in this order: turning after resizing gives other pixels.
    graph = Graph()
    last = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
    )
    scale = ("scale", f"{width}:{height}:flags=bilinear")
    for name, arguments in [*_FILTERS[orientation], scale, ("format", "rgb24")]:
        following = graph.add(name, arguments)
        last.link_to(following)
        last = following
    last.link_to(graph.add("buffersink"))
    graph.configure()
    return graph
