"""The looks of the six things, as polygons in a square from -1 to 1 (x to the right, y down)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from video_llama.synthetic.scene import Kind

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
    """An ellipse, or the part of it between two angles in degrees, clockwise from the right."""
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
    """A polygon that is symmetric to the vertical axis, from its right half."""
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
