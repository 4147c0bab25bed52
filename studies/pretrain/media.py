"""Pictures with words, and sounds with the kind that is heard, rendered in memory."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from video_llama.processors.audio import log_mel
from video_llama.processors.image import normalise
from video_llama.processors.settings import CLIP_MEAN, CLIP_STD, AudioSettings
from video_llama.synthetic.draw import at_time, render_frames
from video_llama.synthetic.play import render_sound
from video_llama.synthetic.scene import COLOURS, KINDS, Scene, Sight
from video_llama.synthetic.splits import Split, generator, render_seed, sample_scene

BINS = 8
"""Number of columns, and of rows, that words distinguish."""

SLOTS = {"kind": len(KINDS), "colour": len(COLOURS), "number": 2, "x": BINS, "y": BINS, "size": 6}
"""Slots of words, and how many words each has; word 0 of a slot means that there is no thing."""

DRAWN_HEIGHT = 96
ASPECTS = (1.0, 4 / 3, 16 / 9)
LARGEST_SIZE = 0.9
KEPT_AREA = (0.5, 1.0)
"""Smallest and largest share of a picture that a crop keeps."""


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Pictures and their words."""

    pixels: Tensor
    """(N, 3, S, S) uint8."""
    words: Tensor
    """(N, number of SLOTS) int64."""

    def normalised(self, index: Tensor) -> Tensor:
        """Return some pictures as the encoders take them, (B, 3, S, S) float32."""
        chosen = self.pixels[index].transpose(0, 1)
        return normalise(chosen, mean=CLIP_MEAN, std=CLIP_STD).transpose(0, 1)

    def discoloured(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Return some pictures, normalised, with the colours of each mixed at random."""
        mixing = torch.rand(len(index), 3, 3, generator=generator)
        mixing = mixing / mixing.sum(dim=-1, keepdim=True)
        chosen = self.pixels[index].float()
        mixed = torch.einsum("b i j, b j h w -> i b h w", mixing, chosen)
        return normalise(mixed.to(torch.uint8), mean=CLIP_MEAN, std=CLIP_STD).transpose(0, 1)


def draw_pictures(
    seed: int, split: Split, count: int, *, size: int, empty: float = 0.1
) -> Pictures:
    """Draw one moment of each of many scenes.

    Args:
        seed: of the world.
        split: whose combinations occur.
        count: N.
        size: S, pixels.
        empty: least share of pictures with nothing in them.
    """
    # uint8, and normalised when needed: as floats they would take four times the memory.
    pixels = torch.empty(count, 3, size, size, dtype=torch.uint8)
    words = torch.zeros(count, len(SLOTS), dtype=torch.int64)
    for index in tqdm(range(count), desc=f"pictures ({split})", mininterval=1.0):
        scene = sample_scene(seed, split, index)
        # The moment has a generator of its own, so that it is independent of the scene.
        rng = generator(seed, f"moment/{split}", index)
        if rng.random() < empty:
            scene = Scene(background=scene.background)
        picture, words[index] = _moment(scene, render_seed(seed, split, index), rng, size)
        pixels[index] = torch.from_numpy(picture).permute(2, 0, 1)
    return Pictures(pixels=pixels, words=words)


def _moment(
    scene: Scene, seed: int, rng: np.random.Generator, size: int
) -> tuple[NDArray[np.uint8], Tensor]:
    """Draw a picture, (size, size, 3), and find its words."""
    # 0.999: at the very end of a clip no thing is there any more.
    time = 0.999 * rng.random()
    height = DRAWN_HEIGHT
    width = 2 * round(height * ASPECTS[int(rng.integers(len(ASPECTS)))] / 2)
    (frame,) = render_frames(scene, seed, height=height, width=width, times=[time])
    things = _things(scene, time)
    # Crops and aspects vary as the processors of the trainings vary them.
    box = _crop(things, rng, height, width)
    # Nearly what an mp4 of this size looks like: less colour than light, and soft edges.
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=int(rng.integers(60, 96)))
    method = (Image.Resampling.BILINEAR, Image.Resampling.BICUBIC)[int(rng.integers(2))]
    picture = Image.open(buffer).resize((size, size), method, box=box)
    return np.array(picture), _words(scene, time, things, box, height, width)


def _things(scene: Scene, time: float) -> list[Sight]:
    for sight, (begin, end) in zip(scene.sights, scene.spans(len(scene.sights)), strict=True):
        if begin <= time < end:
            return at_time(sight, (time - begin) / (end - begin))
    return []


def _crop(
    things: Sequence[Sight], rng: np.random.Generator, height: int, width: int
) -> tuple[float, float, float, float]:
    """Choose a crop that keeps most of every thing; half of the time the complete picture."""
    whole = (0.0, 0.0, float(width), float(height))
    if rng.random() < 0.5:
        return whole
    # Sides, not areas, are multiplied below.
    share = np.sqrt(rng.uniform(*KEPT_AREA, size=2))
    w, h = share * (width, height)
    left, top = rng.random(2) * (width - w, height - h)
    box = (float(left), float(top), float(left + w), float(top + h))
    # Things reach this far from their centre; where one would be cut, there is no crop.
    half = 0.35 * min(width, height)
    for thing in things:
        x, y, reach = thing.x * width, thing.y * height, thing.size * half
        if x - reach < box[0] or y - reach < box[1] or x + reach > box[2] or y + reach > box[3]:
            return whole
    return box


def _words(
    scene: Scene,
    time: float,
    things: Sequence[Sight],
    box: tuple[float, float, float, float],
    height: int,
    width: int,
) -> Tensor:
    # Places and sizes are those in the crop, which is what the encoder sees.
    if not things:
        return torch.zeros(len(SLOTS), dtype=torch.int64)
    # Several things of a kind count by their common centre.
    x = sum(thing.x for thing in things) / len(things)
    y = sum(thing.y for thing in things) / len(things)
    shares = ((x * width - box[0]) / (box[2] - box[0]), (y * height - box[1]) / (box[3] - box[1]))
    size = things[0].size * height / (box[3] - box[1]) / LARGEST_SIZE
    places = [min(int(BINS * max(share, 0.0)), BINS - 1) for share in shares]
    return 1 + torch.tensor(
        [
            KINDS.index(things[0].kind),
            COLOURS.index(things[0].colour),
            len(things) - 1,
            *places,
            min(int(size * SLOTS["size"]), SLOTS["size"] - 1),
        ]
    )


SILENT = 0.14
"""Share of sounds that are hiss only, about one in seven."""


@dataclass(frozen=True, kw_only=True)
class Sounds:
    """Spectrograms of short clips, and what is heard in the middle of each."""

    spectrograms: Tensor
    """(N, 1, mel, frames) float16, normalised."""
    kinds: Tensor
    """(N,) int64, 1 more than the index of the kind, 0 for silence."""


def play_sounds(seed: int, split: Split, count: int) -> Sounds:
    """Render a clip of each of `count` scenes of a split; two sounds may meet in it."""
    settings = AudioSettings(name="imagebind_audio")
    spectrograms, kinds = list[Tensor](), torch.zeros(count, dtype=torch.int64)
    for index in tqdm(range(count), desc=f"sounds ({split})", mininterval=1.0):
        scene = sample_scene(seed, split, index)
        rng = generator(seed, f"clip/{split}", index)
        # Silence is a kind, too: the branch has to say that nothing is heard.
        if rng.random() < SILENT:
            scene = replace(scene, sounds=())
        rate = settings.sample_rate
        wave = render_sound(scene, render_seed(seed, split, index), rate=rate)
        length = int(settings.clip_samples)
        first = int(rng.integers(max(1, len(wave) - length)))
        clip = torch.from_numpy(wave[first : first + length])[None]
        # Half precision suffices for training, and halves what thousands of them take.
        spectrograms.append(log_mel([clip], settings)[0].half())
        # A clip that holds the change from one sound to the next belongs to that in its middle.
        middle = (first + length / 2) / len(wave)
        for sound, (begin, end) in zip(scene.sounds, scene.spans(len(scene.sounds)), strict=True):
            if begin <= middle < end:
                kinds[index] = 1 + KINDS.index(sound.kind)
    return Sounds(spectrograms=torch.stack(spectrograms), kinds=kinds)
