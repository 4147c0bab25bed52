"""Scenes at random, and what is read about them where their pictures and sounds would stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from video_llama.synthetic.language import clip_caption, sound_caption
from video_llama.synthetic.scene import COLOURS, KINDS, MOTIONS, Kind, Scene, Sight, Sound
from video_llama.synthetic.wording import ENGLISH

Item = TypeVar("Item")


def random_scene(rng: np.random.Generator) -> Scene:
    """A scene of which only what can be said about it counts."""
    layout = rng.random()
    count = 0 if layout < 0.1 else 2 if layout < 0.45 else 1
    sights = []
    for kind in _different(rng, count):
        motion = "still" if count == 2 else pick(rng, MOTIONS)
        number = 1 + int(count == 1 and rng.random() < 0.4)
        sights.append(Sight(kind=kind, colour=pick(rng, COLOURS), motion=motion, number=number))
    heard = rng.random()
    kinds = _different(rng, 0 if heard < 0.2 else 2 if heard < 0.55 else 1)
    return Scene(
        sights=tuple(sights),
        sounds=tuple(Sound(kind=kind) for kind in kinds),
        background=pick(rng, ("plain", "cluttered")),
    )


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """What stands where the picture would: a caption, or its key words in any order."""
    if rng.random() < 0.6 or not scene.sights:
        return clip_caption(scene, rng)
    things = []
    for sight in scene.sights:
        words = [ENGLISH.colours[sight.colour], ENGLISH.kinds[sight.kind]]
        if len(scene.sights) == 1:
            words += [ENGLISH.motions[sight.motion], ENGLISH.numbers[sight.number - 1]]
        things.append(" ".join(words[at] for at in rng.permutation(len(words))))
    return " then ".join(things)


def describe_sound(scene: Scene, rng: np.random.Generator) -> str:
    """What stands where the sound would.

    Mostly it is what one would see if the things that are heard were seen: the audio
    branch is trained on pictures, and says no more than that about sounds.
    """
    if rng.random() < 0.3:
        return sound_caption(scene, rng)
    still = len(scene.sounds) == 2
    sights = [
        Sight(
            kind=sound.kind,
            colour=pick(rng, COLOURS),
            motion="still" if still else pick(rng, MOTIONS),
            number=1 + int(not still and rng.random() < 0.3),
        )
        for sound in scene.sounds
    ]
    return describe(replace(scene, sights=tuple(sights)), rng)


def pick(rng: np.random.Generator, items: Sequence[Item]) -> Item:
    """One of the items, each as likely."""
    return items[int(rng.integers(len(items)))]


def _different(rng: np.random.Generator, count: int) -> list[Kind]:
    return [KINDS[at] for at in rng.permutation(len(KINDS))[:count]]
