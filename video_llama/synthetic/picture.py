"""Drawing a scene: a pure function of the scene and a seed, at any size and frame rate."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from video_llama.synthetic.icons import ICONS, Tone
from video_llama.synthetic.randomness import generator
from video_llama.synthetic.scene import ARRIVAL, GAP, Colour, Kind, Scene, Sight

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
    """When the frames of a clip are shown, as shares of its duration.

    Args:
        duration: seconds.
        fps: frames per second.
    """
    count = max(1, round(duration * fps))
    return [index / count for index in range(count)]


def render_frames(
    scene: Scene, seed: int, *, height: int, width: int, times: Sequence[float]
) -> Pictures:
    """Pictures of a scene.

    Args:
        scene: what to draw.
        seed: of the background.
        height: pixels.
        width: pixels.
        times: when, as shares of the scene's duration, in 0..1.

    Returns:
        (T, height, width, 3) uint8, RGB.
    """
    background = draw_background(scene, seed, height=height, width=width)
    frames = np.empty((len(times), height, width, 3), np.uint8)
    before: list[Sight] | None = None
    for index, time in enumerate(times):
        things = _visible(scene, time)
        if things == before:  # what rests is drawn once
            frames[index] = frames[index - 1]
            continue
        frames[index] = background
        for thing in things:
            _paste_thing(frames[index], thing)
        before = things
    return frames


def _visible(scene: Scene, time: float) -> list[Sight]:
    """The things that are there at a share of the scene's time, each where it is."""
    return [
        thing
        for sight, (begin, end) in zip(scene.sights, scene.spans(len(scene.sights)), strict=True)
        if begin <= time < end
        for thing in at_time(sight, (time - begin) / (end - begin))
    ]


def at_time(sight: Sight, time: float) -> list[Sight]:
    """Each of the things of a sight, standing still where it is at a moment.

    Args:
        sight: one or two things with their motion.
        time: share of the sight's own span, in 0..1.
    """
    progress = min(time / ARRIVAL, 1.0)
    if sight.motion in ("left", "up", "shrinking"):
        progress = 1.0 - progress
    x, y, size = sight.x, sight.y, sight.size
    if sight.motion in ("left", "right"):
        x += sight.speed * (progress - 0.5)
    elif sight.motion in ("up", "down"):
        y += sight.speed * (progress - 0.5)
    elif sight.motion in ("growing", "shrinking"):
        smallest = 2 * size / (1 + sight.speed)
        size = smallest * (1 + (sight.speed - 1) * progress)
    still = replace(sight, x=x, y=y, size=size, motion="still", number=1)
    if sight.number == 1:
        return [still]
    shifts = [(0.0, GAP) if sight.stacked else (GAP, 0.0)]
    shifts += [(-dx, -dy) for dx, dy in shifts]
    return [replace(still, x=x + dx, y=y + dy) for dx, dy in shifts]


def draw_background(scene: Scene, seed: int, *, height: int, width: int) -> Pictures:
    """What lies behind the things.

    Args:
        scene: says whether it is plain or cluttered.
        seed: of its colours and shapes.
        height: pixels.
        width: pixels.

    Returns:
        (height, width, 3) uint8, RGB.
    """
    rng = generator(seed, "background")
    canvas = Image.new("RGB", (2 * width, 2 * height), _muted(rng))
    if scene.background == "cluttered":
        draw = ImageDraw.Draw(canvas)
        for _ in range(int(rng.integers(CLUTTER[0], CLUTTER[1] + 1))):
            _draw_clutter(draw, rng, 2 * height, 2 * width)
    return np.asarray(canvas.reduce(2))


def _muted(rng: np.random.Generator) -> Rgb:
    """A grey with a slight tint."""
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
    left, top = max(0, math.floor(x - reach)), max(0, math.floor(y - reach))
    right, bottom = min(width, math.ceil(x + reach)), min(height, math.ceil(y + reach))
    if right <= left or bottom <= top:
        return
    detail = 2 ** math.ceil(math.log2(_SAMPLES * max(half, 1.0)))
    sprite, scale = _sprite(thing.kind, thing.colour, detail), detail / half
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
    """A thing on a transparent square, not anti-aliased; half its size is in pixels.

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
    for points, shape in polygons:
        if shape.outlined:
            draw.line([*points, *points[:2]], fill=DARK, width=line, joint="curve")
    for points, shape in polygons:
        draw.polygon(points, fill=tones[shape.tone])
    return canvas.convert("RGBa")


def shades(colour: Colour) -> dict[Tone, Rgb]:
    """The colours in which a thing is drawn."""
    red, green, blue = RGB[colour]
    return {
        "body": (red, green, blue),
        "shade": (red * 6 // 10, green * 6 // 10, blue * 6 // 10),
        "light": ((red + 255) // 2, (green + 255) // 2, (blue + 255) // 2),
        "dark": DARK,
    }
