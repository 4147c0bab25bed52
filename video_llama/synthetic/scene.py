"""What can be in the world, and the description of one scene of it.

Everything else follows from a scene: `picture` draws it, `sound` plays it, `language` talks about
it. docs/world.md says the same in prose, for those who draw or film a scene by other means.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

Kind = Literal["bell", "drum", "bird", "siren", "whistle", "engine"]
Colour = Literal["red", "green", "blue", "yellow", "white", "purple"]
Motion = Literal["left", "right", "up", "down", "growing", "shrinking", "still"]
Background = Literal["plain", "cluttered"]

KINDS: tuple[Kind, ...] = get_args(Kind)
"""Things, each with a look and a sound of its own."""

COLOURS: tuple[Colour, ...] = get_args(Colour)
"""Colours of things; `picture.RGB` has their values."""

MOTIONS: tuple[Motion, ...] = get_args(Motion)
"""Ways to move; the first six come in opposite pairs."""

BACKGROUNDS: tuple[Background, ...] = get_args(Background)
"""What may lie behind the things."""

OPPOSITES: dict[Motion, Motion] = {
    "left": "right",
    "right": "left",
    "up": "down",
    "down": "up",
    "growing": "shrinking",
    "shrinking": "growing",
}
"""The motion that the same frames show in reverse; still has none."""

ARRIVAL = 0.875
"""Share of a clip after which a motion has ended.

Eight frames are taken at 0/8, 1/8, ... 7/8 of a clip. A motion over just that span is symmetric in
them: shuffled, they look the same for both directions.
"""

GAP = 0.24
"""Distance of each of two things from the middle between them, as a share of width or height."""


@dataclass(frozen=True, kw_only=True)
class Sight:
    """A thing, or two of it side by side, for a part of a scene's time.

    Attributes:
        kind: what it is.
        colour: of its body.
        motion: what it does from its first to its last moment.
        number: 1, or 2 equal ones that move together.
        size: height and width, as a share of the picture's shorter side; of a thing that grows or
            shrinks, half-way.
        x: centre of the path, as a share of the picture's width, from the left.
        y: centre of the path, as a share of the picture's height, from the top.
        speed: length of the path as a share of the picture's width or height; of a thing that grows
            or shrinks, its largest size over its smallest.
        stacked: whether two things stand one above the other rather than side by side.
    """

    kind: Kind
    colour: Colour
    motion: Motion
    number: int = 1
    size: float = 0.5
    x: float = 0.5
    y: float = 0.5
    speed: float = 0.0
    stacked: bool = False


@dataclass(frozen=True, kw_only=True)
class Sound:
    """The sound of a thing, for a part of a scene's time.

    Attributes:
        kind: what makes it.
        pitch: factor on every frequency of the sound.
        tempo: factor on its rhythm.
        loudness: largest amplitude, in 0..1.
    """

    kind: Kind
    pitch: float = 1.0
    tempo: float = 1.0
    loudness: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Scene:
    """A few seconds of the world.

    Attributes:
        sights: what is seen: nothing, one entry, or two of which the second follows the first.
        sounds: what is heard, likewise.
        duration: seconds.
        switch: share of the duration at which a second entry takes the place of the first.
        background: behind the things.
        noise: standard deviation of the hiss under the sounds, on the scale of amplitudes.
    """

    sights: tuple[Sight, ...] = ()
    sounds: tuple[Sound, ...] = ()
    duration: float = 4.0
    switch: float = 0.45
    background: Background = "plain"
    noise: float = 0.0

    @property
    def silent(self) -> bool:
        """Tell whether nothing but hiss is heard."""
        return not self.sounds

    @property
    def contradictory(self) -> bool:
        """Tell whether something is seen and something else is heard."""
        kinds = [[part.kind for part in parts] for parts in (self.sights, self.sounds)]
        return bool(self.sights and self.sounds) and kinds[0] != kinds[1]

    def spans(self, count: int) -> list[tuple[float, float]]:
        """Return begin and end of each of `count` successive entries, in shares of time."""
        if count < 2:
            return [(0.0, 1.0)] * count
        return [(0.0, self.switch), (self.switch, 1.0)]
