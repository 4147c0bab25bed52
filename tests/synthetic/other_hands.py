"""The world drawn and played by other hands: from docs/world.md alone, with matplotlib and numpy.

Nothing here comes from `video_llama.synthetic`; what differs is meant to: frame rates, sizes,
lengths, containers, codecs and sample rates.

    python -m tests.synthetic.other_hands DIR
    video-llama evaluate DIR/questions.json --condition all --condition withheld
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import av
import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Ellipse, Patch, Polygon, Rectangle, Wedge
from matplotlib.transforms import Affine2D

from tests.media import encode_sound

KINDS = ("bell", "drum", "bird", "siren", "whistle", "engine")
COLOURS = ("red", "green", "blue", "yellow", "white", "purple")
GROUPS = (("left", "right"), ("up", "down"), ("growing", "shrinking"), ("still",))
OPPOSITES = {a: b for pair in GROUPS[:3] for a, b in (pair, pair[::-1])}
RGB = {
    "red": (225, 35, 35),
    "green": (35, 175, 55),
    "blue": (40, 80, 230),
    "yellow": (245, 215, 40),
    "white": (245, 245, 245),
    "purple": (160, 50, 190),
}
DARK = (25, 25, 25)
AN = {kind: f"{'an' if kind == 'engine' else 'a'} {kind}" for kind in KINDS}

FORMATS = (  # suffix, video codec, sound codec, samples a second, frames a second, width, height
    (".mkv", "mpeg4", "libmp3lame", 44_100, 12, 320, 240),
    (".webm", "libvpx", "libopus", 48_000, 15, 240, 180),
    (".mov", "libx264", "aac", 22_050, 25, 256, 144),
)
DURATIONS = (2.5, 3.0, 4.2, 5.0, 6.0)

Rng = np.random.Generator
Part = tuple[Patch, str, bool]
"""A part of a thing in its own square, its tone, and whether it has an outline."""


@dataclass(frozen=True)
class Thing:
    kind: str
    colour: str
    motion: str = "still"
    number: int = 1
    size: float = 0.5
    x: float = 0.5
    y: float = 0.5
    speed: float = 0.0
    stacked: bool = False


@dataclass(frozen=True)
class Noise:
    kind: str
    pitch: float = 1.0
    tempo: float = 1.0
    loudness: float = 0.5


@dataclass(frozen=True)
class Film:
    things: tuple[Thing, ...]
    noises: tuple[Noise, ...]
    duration: float
    switch: float = 0.43
    hiss: float = 0.008
    busy: bool = False


def disc(x: float, y: float, rx: float, ry: float | None = None) -> Ellipse:
    return Ellipse((x, y), 2 * rx, 2 * (rx if ry is None else ry))


def box(left: float, top: float, right: float, bottom: float) -> Rectangle:
    return Rectangle((left, top), right - left, bottom - top)


def line(x0: float, y0: float, x1: float, y1: float, width: float) -> Polygon:
    along = np.array([x1 - x0, y1 - y0]) / np.hypot(x1 - x0, y1 - y0)
    side = np.array([-along[1], along[0]]) * width / 2
    start, end = np.array([x0, y0]), np.array([x1, y1])
    return Polygon(np.array([start + side, end + side, end - side, start - side]))


def polygon(*points: tuple[float, float]) -> Polygon:
    return Polygon(np.array(points))


def bell() -> list[Part]:
    half = [(0, -0.78), (0.26, -0.72), (0.44, -0.52), (0.52, -0.2), (0.58, 0.12), (0.7, 0.38)]
    half.append((0.92, 0.62))
    return [
        (disc(0, 0.74, 0.2), "dark", True),
        (disc(0, -0.84, 0.13), "body", True),
        (polygon(*half, *[(-x, y) for x, y in half[::-1]]), "body", True),
        (box(-0.92, 0.46, 0.92, 0.66), "shade", False),
        (line(-0.26, -0.4, -0.36, 0.2, 0.14), "light", False),
    ]


def drum() -> list[Part]:
    cord = [(-0.92, 0), (-0.46, 0.62), (0, 0.1), (0.46, 0.62), (0.92, 0)]
    return [
        (disc(0, 0.5, 0.94, 0.34), "body", True),
        (box(-0.94, -0.4, 0.94, 0.5), "body", True),
        (disc(0, 0.5, 0.9, 0.3), "body", False),
        *[(line(*cord[i], *cord[i + 1], 0.13), "dark", False) for i in range(4)],
        (disc(0, -0.4, 0.94, 0.34), "light", True),
    ]


def bird() -> list[Part]:
    return [
        (line(-0.12, 0.5, -0.12, 0.95, 0.09), "dark", False),
        (line(0.16, 0.5, 0.16, 0.95, 0.09), "dark", False),
        (polygon((-0.4, 0.05), (-1, -0.3), (-0.92, 0.28), (-0.4, 0.42)), "body", True),
        (polygon((0.66, -0.5), (1, -0.28), (0.66, -0.16)), "dark", True),
        (disc(-0.02, 0.2, 0.62, 0.42), "body", True),
        (disc(0.44, -0.36, 0.32), "body", True),
        (disc(0.42, -0.22, 0.26), "body", False),
        (polygon((-0.56, 0), (0.24, 0.06), (-0.12, 0.5)), "shade", False),
        (disc(0.52, -0.42, 0.08), "dark", False),
    ]


def siren() -> list[Part]:
    rays: list[Part] = []
    for degrees in (200, 235, 270, 305, 340):
        cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
        ray = line(0.74 * cos, 0.3 + 0.82 * sin, cos, 0.3 + 1.2 * sin, 0.16)
        rays.append((ray, "body", True))
    angles = np.radians(np.linspace(180, 360, 90))
    lamp = Polygon(np.stack([0.52 * np.cos(angles), 0.36 + 0.72 * np.sin(angles)], axis=1))
    return [
        *rays,
        (lamp, "body", True),
        (disc(-0.16, 0.1, 0.12, 0.24), "light", False),
        (box(-0.8, 0.36, 0.8, 0.86), "dark", True),
    ]


def whistle() -> list[Part]:
    return [
        (box(-1, -0.5, 0.4, 0.02), "body", True),
        (disc(0.36, 0.16, 0.62, 0.66), "body", True),
        (box(-0.96, -0.46, 0.3, -0.02), "body", False),
        (box(-0.3, -0.54, 0, -0.2), "dark", False),
        (disc(0.36, 0.2, 0.26), "dark", False),
        (box(-1, -0.5, -0.8, 0.02), "shade", False),
    ]


def engine() -> list[Part]:
    corners = []
    for tooth in range(8):
        for offset, radius in ((-16.2, 0.68), (-9, 1), (9, 1), (16.2, 0.68)):
            angle = np.radians(45 * tooth + offset)
            corners.append((radius * np.cos(angle), radius * np.sin(angle)))
    return [
        (polygon(*corners), "body", True),
        (Wedge((0, 0), 0.46, 0, 360), "shade", False),
        (Wedge((0, 0), 0.28, 0, 360), "dark", False),
    ]


LOOKS = {"bell": bell, "drum": drum, "bird": bird, "siren": siren}
LOOKS |= {"whistle": whistle, "engine": engine}


def tones(colour: str) -> dict[str, tuple[float, ...]]:
    body = np.array(RGB[colour]) / 255
    found = {"body": body, "shade": 0.6 * body, "light": (body + 1) / 2}
    return {name: tuple(tone) for name, tone in found.items()} | {
        "dark": tuple(np.array(DARK) / 255)
    }


class Easel:
    """Draws frames of one size on one background."""

    def __init__(self, width: int, height: int, grey: Sequence[float]) -> None:
        self.width, self.height = width, height
        figure = Figure(figsize=(width / 72, height / 72), dpi=72)  # a point is a pixel
        self.canvas = FigureCanvasAgg(figure)
        self.axes = figure.add_axes((0, 0, 1, 1))
        self.axes.set_xlim(0, width)
        self.axes.set_ylim(height, 0)
        self.axes.axis("off")
        figure.set_facecolor(tuple(np.array(grey) / 255))

    def clutter(self, rng: Rng) -> None:
        side = min(self.width, self.height)
        for _ in range(rng.integers(6, 13)):
            x, y = rng.uniform(0, self.width), rng.uniform(0, self.height)
            reach = side * rng.uniform(0.05, 0.2)
            shapes = [
                box(x - reach, y - reach / 2, x + reach, y + reach / 2),
                disc(x, y, reach),
                line(x, y, *(np.array([x, y]) + rng.uniform(-2, 2, 2) * reach), side / 40),
            ]
            shape = shapes[rng.integers(3)]
            shape.set(facecolor=tuple(muted(rng) / 255), linewidth=0)
            self.axes.add_patch(shape)

    def frame(self, things: Sequence[Thing]) -> np.ndarray:
        """(H, W, 3) uint8."""
        added: list[Any] = [patch for thing in things for patch in self._patches(thing)]
        for patch in added:
            self.axes.add_patch(patch)
        self.canvas.draw()
        picture = np.asarray(self.canvas.buffer_rgba())[..., :3].copy()
        for patch in added:
            patch.remove()
        return picture

    def _patches(self, thing: Thing) -> Iterator[Patch]:
        half = thing.size * min(self.width, self.height) / 2
        place = Affine2D().scale(half).translate(thing.x * self.width, thing.y * self.height)
        colours = tones(thing.colour)
        for patch, _, outlined in LOOKS[thing.kind]():
            if outlined:
                patch.set(facecolor=colours["dark"], edgecolor=colours["dark"], joinstyle="round")
                patch.set_snap(False)
                patch.set(linewidth=2 * 0.07 * half, transform=place + self.axes.transData)
                yield patch
        for patch, tone, _ in LOOKS[thing.kind]():
            patch.set(facecolor=colours[tone], linewidth=0, transform=place + self.axes.transData)
            patch.set_snap(False)
            yield patch


def muted(rng: Rng) -> np.ndarray:
    return rng.uniform(75, 145) + rng.uniform(-15, 15, 3)


def moved(thing: Thing, share: float) -> list[Thing]:
    """The thing, or the two of it, where they are at a share of the time."""
    done = min(share / (7 / 8), 1.0)
    forward = done if thing.motion in ("right", "down", "growing") else 1 - done
    x, y, size = thing.x, thing.y, thing.size
    if thing.motion in ("left", "right"):
        x += thing.speed * (forward - 0.5)
    elif thing.motion in ("up", "down"):
        y += thing.speed * (forward - 0.5)
    elif thing.motion != "still":
        smallest = 2 * size / (1 + thing.speed)
        size = smallest + (thing.speed - 1) * smallest * forward
    here = replace(thing, x=x, y=y, size=size, number=1)
    if thing.number == 1:
        return [here]
    apart = (0.0, 0.24) if thing.stacked else (0.24, 0.0)
    return [replace(here, x=x + s * apart[0], y=y + s * apart[1]) for s in (-1, 1)]


def frames_of(film: Film, width: int, height: int, fps: float, rng: Rng) -> np.ndarray:
    """(T, H, W, 3) uint8."""
    easel = Easel(width, height, muted(rng))
    if film.busy:
        easel.clutter(rng)
    frames = []
    count = round(film.duration * fps)
    for share in np.arange(count) / count:
        shown = film.things[:1] if len(film.things) == 1 else ()
        if len(film.things) == 2:
            shown = film.things[int(share >= film.switch) :][:1]
        frames.append(easel.frame([part for thing in shown for part in moved(thing, share)]))
    return np.stack(frames)


def voice(noise: Noise, seconds: float, rate: int, rng: Rng) -> np.ndarray:
    """(L,) float: one sound from its begin to its end."""
    heard = np.arange(round(seconds * rate)) / rate
    t = heard + rng.uniform(0, 1)
    wave = SOUNDS[noise.kind](t, noise.pitch, noise.tempo, rate, rng)
    wave *= np.clip(np.minimum(heard, seconds - heard) / 0.01, 0, 1)
    return noise.loudness * wave / np.abs(wave).max()


def sines(pairs: Sequence[tuple[float, np.ndarray]], t: np.ndarray, rate: int) -> np.ndarray:
    """Those of the (frequency, amplitude) pairs that the rate can hold."""
    tau = 2 * np.pi
    return sum((a * np.sin(tau * f * t) for f, a in pairs if f < rate / 2), np.zeros(len(t)))


def swept(frequency: np.ndarray, rate: int) -> np.ndarray:
    """A phase, in turns, from a frequency that changes, by adding it up."""
    return np.cumsum(frequency) / rate


def bell_sound(t: np.ndarray, pitch: float, tempo: float, rate: int, rng: Rng) -> np.ndarray:
    u = t % (0.5 / tempo)
    partials = ((700, 1, 4), (1400, 0.6, 5.7), (1932, 0.5, 6.6), (3780, 0.25, 9.3))
    return sines([(pitch * f, a * np.exp(-d * u)) for f, a, d in partials], u, rate)


def drum_sound(t: np.ndarray, pitch: float, tempo: float, rate: int, rng: Rng) -> np.ndarray:
    u = t % (0.25 / tempo)
    turns = pitch * (60 * u + 120 * 0.03 * (1 - np.exp(-u / 0.03)))
    rustle = 0.25 * np.exp(-u / 0.015) * rng.standard_normal(len(t))
    return np.exp(-u / 0.07) * np.sin(2 * np.pi * turns) + rustle


def bird_sound(t: np.ndarray, pitch: float, tempo: float, rate: int, rng: Rng) -> np.ndarray:
    number, u = np.divmod(t, 0.13 / tempo)
    share = np.clip(u / (0.09 / tempo), 0, 1)
    tone = np.sin(2 * np.pi * swept(pitch * (2500 + 2000 * share), rate))
    return np.where(number % 5 < 3, np.sin(np.pi * share) ** 2, 0) * tone


def siren_sound(t: np.ndarray, pitch: float, tempo: float, rate: int, rng: Rng) -> np.ndarray:
    turns = swept(pitch * (800 + 300 * np.sin(2 * np.pi * t * tempo)), rate)
    return sum(np.sin(2 * np.pi * turns * n) / n for n in (1, 3, 5))


def whistle_sound(t: np.ndarray, pitch: float, tempo: float, rate: int, rng: Rng) -> np.ndarray:
    u, shake = t % (0.8 / tempo), np.sin(2 * np.pi * 24 * t * tempo)
    tone = (0.7 + 0.3 * shake) * np.sin(2 * np.pi * swept(pitch * (2100 + 120 * shake), rate))
    blast = np.clip(np.minimum(u, 0.65 / tempo - u) / 0.03, 0, 1)
    return blast * (tone + 0.08 * rng.standard_normal(len(t)))


def engine_sound(t: np.ndarray, pitch: float, tempo: float, rate: int, rng: Rng) -> np.ndarray:
    buzz = sines([(75 * pitch * n, np.full(len(t), 1 / n)) for n in range(1, 14)], t, rate)
    return (0.6 + 0.4 * np.sin(2 * np.pi * 9 * t * tempo)) * buzz


SOUNDS = {
    "bell": bell_sound,
    "drum": drum_sound,
    "bird": bird_sound,
    "siren": siren_sound,
    "whistle": whistle_sound,
    "engine": engine_sound,
}


def sound_of(film: Film, rate: int, rng: Rng) -> np.ndarray:
    """(L,) float32 in -1..1."""
    wave = film.hiss * rng.standard_normal(round(film.duration * rate))
    borders = [0, round(film.switch * len(wave)), len(wave)]
    if len(film.noises) == 1:
        borders = [0, len(wave)]
    for noise, first, last in zip(film.noises, borders, borders[1:], strict=False):
        wave[first:last] += voice(noise, (last - first) / rate, rate, rng)[: last - first]
    return np.clip(wave, -1, 1).astype(np.float32)


def held_out(rng: Rng, motion: str) -> tuple[str, str]:
    """A kind and a colour that, moving so, are in the split `test` only."""
    shift = next(n for n, group in enumerate(GROUPS) if motion in group)
    number = int(rng.integers(6))
    return KINDS[number], COLOURS[(number + shift) % 6]


def a_noise(rng: Rng, kind: str) -> Noise:
    pitch, tempo = (rng.uniform(*((0.75, 0.82), (1.22, 1.33))[rng.integers(2)]) for _ in "pt")
    loudness = rng.uniform(*((0.15, 0.24), (0.86, 0.95))[rng.integers(2)])
    return Noise(kind, pitch, tempo, loudness)


def a_thing(rng: Rng, kind: str, colour: str, motion: str, number: int) -> Thing:
    two = number == 2
    size = rng.uniform(*(0.30, 0.36) if two else (0.40, 0.56))
    path = rng.uniform(*(0.26, 0.36) if two else (0.30, 0.42))
    growth = rng.uniform(*(1.6, 1.9) if two else (1.9, 2.5))
    across, along = motion in ("left", "right"), motion in ("up", "down")
    grows = motion in ("growing", "shrinking")
    stacked = two and (across or (not along and rng.random() < 0.5))
    half = size * growth / (1 + growth) if grows else size / 2
    room_x = 0.48 - half - path / 2 * across - 0.24 * (two and not stacked)
    room_y = 0.48 - half - path / 2 * along - 0.24 * (two and stacked)
    x, y = (0.5 + rng.uniform(-1, 1) * max(0, room) for room in (room_x, room_y))
    speed = growth if grows else path if across or along else 0.0
    return Thing(kind, colour, motion, number, size, x, y, speed, stacked)


def films(seed: int) -> Iterator[tuple[Film, list[tuple[str, str, str]]]]:
    """Films, each with (type, question, answer) triples; at least thirty of them."""
    rng = np.random.default_rng(seed)
    for number in range(28):
        motion = [m for group in GROUPS for m in group][number % 7]
        kind, colour = held_out(rng, motion)
        many = 2 if number % 4 == 3 else 1
        thing = a_thing(rng, kind, colour, motion, many)
        silent = number % 4 == 1
        noises = () if silent else (a_noise(rng, kind),)
        asked = [
            ("kind", "What kind of thing is it?", kind),
            ("colour", "What colour is it?", colour),
            ("motion", "How does it move?", motion),
        ]
        if not silent:
            asked.append(("hear", "What do you hear?", AN[kind]))
        if silent or number % 4 == 2:
            asked.append(("silent", "Is it silent?", "yes" if silent else "no"))
        busy = bool(rng.random() < 0.5)
        yield Film((thing,), noises, DURATIONS[number % 5], busy=busy), asked
    for number in range(14):
        first, second = (held_out(rng, "still") for _ in "12")
        while second[0] == first[0]:
            second = held_out(rng, "still")
        things = tuple(a_thing(rng, *pair, "still", 1) for pair in (first, second))
        noises = tuple(a_noise(rng, pair[0]) for pair in (first, second))
        this, that = (first[0], second[0])[:: 1 if number % 2 else -1]
        asked = [
            ("order", f"Which comes first, the {this} or the {that}?", f"the {first[0]}"),
            (
                "sound_order",
                f"Which sound comes first, the {this} or the {that}?",
                f"the {first[0]}",
            ),
        ]
        switch, busy = rng.uniform(0.40, 0.46), bool(rng.random() < 0.5)
        yield Film(things, noises, DURATIONS[number % 5], switch, busy=busy), asked


def write_film(path: Path, film: Film, form: tuple[Any, ...], rng: Rng) -> None:
    _, codec, sound_codec, rate, fps, width, height = form
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream(codec, rate=fps)
        video.width, video.height, video.pix_fmt = width, height, "yuv420p"
        video.bit_rate = 1_500_000
        audio: Any = container.add_stream(sound_codec, rate=rate, layout="mono")
        for picture in frames_of(film, width, height, fps, rng):
            container.mux(video.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(video.encode(None))
        encode_sound(container, audio, sound_of(film, rate, rng)[None], rate)


def write_films(out: Path, seed: int = 0) -> Path:
    """Write all films and the questions about them; the file of questions."""
    out.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed + 1)
    chance = {"kind": 1 / 6, "colour": 1 / 6, "motion": 1 / 7, "hear": 1 / 6}
    entries = []
    for number, (film, asked) in enumerate(films(seed)):
        form = FORMATS[number % len(FORMATS)]
        name = f"film_{number:02d}{form[0]}"
        write_film(out / name, film, form, rng)
        entries += [
            {
                "id": f"{number}_{kind}",
                "path": name,
                "question": question,
                "answer": answer,
                "type": kind,
                "chance": chance.get(kind, 0.5),
                "opposite": OPPOSITES.get(answer),
                "contradictory": False,
            }
            for kind, question, answer in asked
        ]
    (out / "questions.json").write_text(json.dumps(entries, indent=1), "utf-8")
    return out / "questions.json"


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description="Write clips of the world by other means, to ask about."
    )
    parser.add_argument("out", type=Path, help="folder to make")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    sys.stdout.write(f"{write_films(arguments.out, arguments.seed)}\n")
