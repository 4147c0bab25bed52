"""Draw a scene: a pure function of the scene and a seed, at any size and frame rate.

The looks of the six things are polygons in a square from -1 to 1 (x to the right, y down).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from video_llama.synthetic.scene import ARRIVAL, GAP, Colour, Kind, Scene, Sight
from video_llama.synthetic.splits import generator

Tone = Literal["body", "shade", "light", "dark"]
Point = tuple[float, float]


@dataclass(frozen=True)
class Shape:
    """A filled polygon.

    Attributes:
        points: corners, in order.
        tone: the thing's colour, a darker or lighter one of it, or nearly black.
        outlined: whether it belongs to the silhouette, which has a dark outline.
    """

    points: tuple[Point, ...]
    tone: Tone
    outlined: bool = True


def _ellipse(
    x: float,
    y: float,
    rx: float,
    ry: float | None = None,
    *,
    start: float = 0.0,
    end: float = 360.0,
) -> tuple[Point, ...]:
    """Return an ellipse, or its part between two angles in degrees, clockwise from the right."""
    radius_y = rx if ry is None else ry
    steps = 48
    angles = [math.radians(start + (end - start) * i / steps) for i in range(steps + 1)]
    return tuple((x + rx * math.cos(a), y + radius_y * math.sin(a)) for a in angles)


def _box(left: float, top: float, right: float, bottom: float) -> tuple[Point, ...]:
    return ((left, top), (right, top), (right, bottom), (left, bottom))


def _line(start: Point, end: Point, width: float) -> tuple[Point, ...]:
    dx, dy = end[0] - start[0], end[1] - start[1]
    scale = width / 2 / math.hypot(dx, dy)
    x, y = -dy * scale, dx * scale
    return (
        (start[0] + x, start[1] + y),
        (end[0] + x, end[1] + y),
        (end[0] - x, end[1] - y),
        (start[0] - x, start[1] - y),
    )


def _mirrored(right: Sequence[Point]) -> tuple[Point, ...]:
    """Complete a polygon that is symmetric to the vertical axis from its right half."""
    return (*right, *((-x, y) for x, y in reversed(right)))


def _bell() -> list[Shape]:
    side = [(0.0, -0.78), (0.26, -0.72), (0.44, -0.52), (0.52, -0.2), (0.58, 0.12), (0.7, 0.38)]
    return [
        Shape(_ellipse(0.0, 0.74, 0.2), "dark"),
        Shape(_ellipse(0.0, -0.84, 0.13), "body"),
        Shape(_mirrored([*side, (0.92, 0.62)]), "body"),
        Shape(_box(-0.92, 0.46, 0.92, 0.66), "shade", outlined=False),
        Shape(_line((-0.26, -0.4), (-0.36, 0.2), 0.14), "light", outlined=False),
    ]


def _drum() -> list[Shape]:
    zigzag = [(-0.92, 0.0), (-0.46, 0.62), (0.0, 0.1), (0.46, 0.62), (0.92, 0.0)]
    return [
        Shape(_ellipse(0.0, 0.5, 0.94, 0.34), "body"),
        Shape(_box(-0.94, -0.4, 0.94, 0.5), "body"),
        Shape(_ellipse(0.0, 0.5, 0.9, 0.3), "body", outlined=False),
        *(
            Shape(_line(start, end, 0.13), "dark", outlined=False)
            for start, end in pairwise(zigzag)
        ),
        Shape(_ellipse(0.0, -0.4, 0.94, 0.34), "light"),
    ]


def _bird() -> list[Shape]:
    return [
        Shape(_line((-0.12, 0.5), (-0.12, 0.95), 0.09), "dark", outlined=False),
        Shape(_line((0.16, 0.5), (0.16, 0.95), 0.09), "dark", outlined=False),
        Shape(((-0.4, 0.05), (-1.0, -0.3), (-0.92, 0.28), (-0.4, 0.42)), "body"),
        Shape(((0.66, -0.5), (1.0, -0.28), (0.66, -0.16)), "dark"),
        Shape(_ellipse(-0.02, 0.2, 0.62, 0.42), "body"),
        Shape(_ellipse(0.44, -0.36, 0.32), "body"),
        Shape(_ellipse(0.42, -0.22, 0.26), "body", outlined=False),
        Shape(((-0.56, 0.0), (0.24, 0.06), (-0.12, 0.5)), "shade", outlined=False),
        Shape(_ellipse(0.52, -0.42, 0.08), "dark", outlined=False),
    ]


def _siren() -> list[Shape]:
    rays = []
    for degrees in (200, 235, 270, 305, 340):
        x, y = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
        rays.append(Shape(_line((0.74 * x, 0.3 + 0.82 * y), (x, 0.3 + 1.2 * y), 0.16), "body"))
    return [
        *rays,
        Shape(_ellipse(0.0, 0.36, 0.52, 0.72, start=180, end=360), "body"),
        Shape(_ellipse(-0.16, 0.1, 0.12, 0.24), "light", outlined=False),
        Shape(_box(-0.8, 0.36, 0.8, 0.86), "dark"),
    ]


def _whistle() -> list[Shape]:
    return [
        Shape(_box(-1.0, -0.5, 0.4, 0.02), "body"),
        Shape(_ellipse(0.36, 0.16, 0.62, 0.66), "body"),
        Shape(_box(-0.96, -0.46, 0.3, -0.02), "body", outlined=False),
        Shape(_box(-0.3, -0.54, 0.0, -0.2), "dark", outlined=False),
        Shape(_ellipse(0.36, 0.2, 0.26), "dark", outlined=False),
        Shape(_box(-1.0, -0.5, -0.8, 0.02), "shade", outlined=False),
    ]


def _engine() -> list[Shape]:
    teeth = 8
    wheel = []
    for tooth in range(teeth):
        for offset, radius in ((-0.36, 0.68), (-0.2, 1.0), (0.2, 1.0), (0.36, 0.68)):
            angle = 2 * math.pi * (tooth + offset) / teeth
            wheel.append((radius * math.cos(angle), radius * math.sin(angle)))
    return [
        Shape(tuple(wheel), "body"),
        Shape(_ellipse(0.0, 0.0, 0.46), "shade", outlined=False),
        Shape(_ellipse(0.0, 0.0, 0.28), "dark", outlined=False),
    ]


ICONS: dict[Kind, tuple[Shape, ...]] = {
    "bell": tuple(_bell()),
    "drum": tuple(_drum()),
    "bird": tuple(_bird()),
    "siren": tuple(_siren()),
    "whistle": tuple(_whistle()),
    "engine": tuple(_engine()),
}
"""The shapes of every thing, from the back to the front."""


Rgb = tuple[int, int, int]
Pictures = NDArray[np.uint8]

RGB: dict[Colour, Rgb] = {
    "red": (225, 35, 35),
    "green": (35, 175, 55),
    "blue": (40, 80, 230),
    "yellow": (245, 215, 40),
    "white": (245, 245, 245),
    "purple": (160, 50, 190),
}
"""Red, green and blue of every colour, 0..255."""

DARK: Rgb = (25, 25, 25)
"""Outlines and details, whatever the colour of the thing."""

OUTLINE = 0.07
"""Width of the outline around a thing, as a share of half its size."""

CLUTTER = (6, 12)
"""Smallest and largest number of shapes on a cluttered background."""

_REACH = 1.3
"""Half the part of a picture that a thing is drawn into, over half the thing's size."""

_SAMPLES = 4
"""Points per pixel and direction, at least, that anti-aliasing averages."""


def frame_times(duration: float, fps: float) -> list[float]:
    """Return when the frames of a clip are shown, as shares of its duration.

    Args:
        duration: seconds.
        fps: frames per second.
    """
    count = max(1, round(duration * fps))
    return [index / count for index in range(count)]


def render_frames(
    scene: Scene, seed: int, *, height: int, width: int, times: Sequence[float]
) -> Pictures:
    """Draw pictures of a scene.

    Args:
        height: pixels.
        width: pixels.
        times: when, as shares of the scene's duration, in 0..1.

    Returns:
        (T, height, width, 3) uint8, RGB.
    """
    # The background is drawn once; what stands still is copied from the frame before.
    background = draw_background(scene, seed, height=height, width=width)
    frames = np.empty((len(times), height, width, 3), np.uint8)
    before: list[Sight] | None = None
    for index, time in enumerate(times):
        things = _visible(scene, time)
        if things == before:
            frames[index] = frames[index - 1]
            continue
        frames[index] = background
        for thing in things:
            _paste_thing(frames[index], thing)
        before = things
    return frames


def _visible(scene: Scene, time: float) -> list[Sight]:
    """Return the things that are visible at a share of the scene's time, each at its place."""
    return [
        thing
        for sight, (begin, end) in zip(scene.sights, scene.spans(len(scene.sights)), strict=True)
        if begin <= time < end
        for thing in at_time(sight, (time - begin) / (end - begin))
    ]


def at_time(sight: Sight, time: float) -> list[Sight]:
    """Return each thing of a sight, standing still where it is at a moment.

    Args:
        sight: one or two things with their motion.
        time: share of the sight's own span, in 0..1.
    """
    # A motion ends before the clip does, so that eight frames show it symmetrically in time.
    progress = min(time / ARRIVAL, 1.0)
    if sight.motion in ("left", "up", "shrinking"):
        progress = 1.0 - progress
    x, y, size = sight.x, sight.y, sight.size
    if sight.motion in ("left", "right"):
        x += sight.speed * (progress - 0.5)
    elif sight.motion in ("up", "down"):
        y += sight.speed * (progress - 0.5)
    elif sight.motion in ("growing", "shrinking"):
        # `size` is half-way between smallest and largest, whose ratio is `speed`.
        smallest = 2 * size / (1 + sight.speed)
        size = smallest * (1 + (sight.speed - 1) * progress)
    still = replace(sight, x=x, y=y, size=size, motion="still", number=1)
    if sight.number == 1:
        return [still]
    shifts = [(0.0, GAP) if sight.stacked else (GAP, 0.0)]
    shifts += [(-dx, -dy) for dx, dy in shifts]
    return [replace(still, x=x + dx, y=y + dy) for dx, dy in shifts]


def draw_background(scene: Scene, seed: int, *, height: int, width: int) -> Pictures:
    """Draw what lies behind the things.

    Args:
        scene: says whether it is plain or cluttered.
        height: pixels.
        width: pixels.

    Returns:
        (height, width, 3) uint8, RGB.
    """
    rng = generator(seed, "background")
    # Twice the size, then reduced: edges of the clutter are anti-aliased.
    canvas = Image.new("RGB", (2 * width, 2 * height), _muted(rng))
    if scene.background == "cluttered":
        draw = ImageDraw.Draw(canvas)
        for _ in range(int(rng.integers(CLUTTER[0], CLUTTER[1] + 1))):
            _draw_clutter(draw, rng, 2 * height, 2 * width)
    return np.asarray(canvas.reduce(2))


def _muted(rng: np.random.Generator) -> Rgb:
    """Draw a grey with a slight tint at random."""
    grey = 75 + 70 * rng.random()
    red, green, blue = (round(grey + 30 * (rng.random() - 0.5)) for _ in range(3))
    return red, green, blue


def _draw_clutter(
    draw: ImageDraw.ImageDraw, rng: np.random.Generator, height: int, width: int
) -> None:
    x, y = width * rng.random(), height * rng.random()
    reach = min(height, width) * (0.05 + 0.15 * rng.random())
    shape, colour = int(rng.integers(3)), _muted(rng)
    if shape == 0:
        draw.rectangle((x - reach, y - reach / 2, x + reach, y + reach / 2), fill=colour)
    elif shape == 1:
        draw.ellipse((x - reach, y - reach, x + reach, y + reach), fill=colour)
    else:
        end = (x + reach * 4 * (rng.random() - 0.5), y + reach * 4 * (rng.random() - 0.5))
        draw.line((x, y, *end), fill=colour, width=max(1, min(height, width) // 40))


def _paste_thing(frame: Pictures, thing: Sight) -> None:
    """Draw one thing into a frame, (height, width, 3), where it is."""
    height, width = frame.shape[:2]
    half = thing.size * min(height, width) / 2
    x, y = thing.x * width, thing.y * height
    reach = half * _REACH
    # Only the part of the frame that the thing can reach is touched.
    left, top = max(0, math.floor(x - reach)), max(0, math.floor(y - reach))
    right, bottom = min(width, math.ceil(x + reach)), min(height, math.ceil(y + reach))
    if right <= left or bottom <= top:
        return
    # Sizes of sprites are powers of two, so that a growing thing reuses few of them.
    detail = 2 ** math.ceil(math.log2(_SAMPLES * max(half, 1.0)))
    sprite, scale = _sprite(thing.kind, thing.colour, detail), detail / half
    # The box is in pixels of the sprite; `resize` averages it down to whole pixels of the frame.
    centre = sprite.width / 2
    box = [
        min(max(centre + scale * (edge - middle), 0.0), float(sprite.width))
        for edge, middle in ((left, x), (top, y), (right, x), (bottom, y))
    ]
    small = sprite.resize(
        (right - left, bottom - top),
        Image.Resampling.BOX,
        box=(box[0], box[1], box[2], box[3]),
    )
    part = Image.fromarray(frame[top:bottom, left:right])
    part.paste(small.convert("RGBA"), mask=small.getchannel("a"))
    frame[top:bottom, left:right] = np.asarray(part)


@lru_cache(maxsize=256)
def _sprite(kind: Kind, colour: Colour, half: int) -> Image.Image:
    """Draw a thing on a transparent square, not anti-aliased; half its size is in pixels.

    Colours are multiplied by their opacity, as `resize` would do again for every frame.
    """
    side = 2 * math.ceil(half * (_REACH + 2 / _SAMPLES))
    canvas = Image.new("RGBA", (side, side))
    draw = ImageDraw.Draw(canvas)
    tones = shades(colour)
    line = max(1, round(2 * OUTLINE * half))
    polygons = [
        ([(side / 2 + half * x, side / 2 + half * y) for x, y in shape.points], shape)
        for shape in ICONS[kind]
    ]
    # All outlines first: inner edges between parts of the silhouette are painted over.
    for points, shape in polygons:
        if shape.outlined:
            draw.line([*points, *points[:2]], fill=DARK, width=line, joint="curve")
    for points, shape in polygons:
        draw.polygon(points, fill=tones[shape.tone])
    return canvas.convert("RGBa")


def shades(colour: Colour) -> dict[Tone, Rgb]:
    """Return the colours in which a thing is drawn."""
    red, green, blue = RGB[colour]
    return {
        "body": (red, green, blue),
        "shade": (red * 6 // 10, green * 6 // 10, blue * 6 // 10),
        "light": ((red + 255) // 2, (green + 255) // 2, (blue + 255) // 2),
        "dark": DARK,
    }
