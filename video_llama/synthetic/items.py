"""The items of the written data: which files there are, of which scenes, and how one is made."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from video_llama.synthetic.draw import frame_times, render_frames
from video_llama.synthetic.media import write_clip, write_picture, write_sound
from video_llama.synthetic.play import render_sound
from video_llama.synthetic.scene import Scene
from video_llama.synthetic.splits import Split, generator, render_seed, sample_scene

Source = Literal["clips", "cc_sbu_align", "llava_instruct", "audio_caption"]

FIRST_INDEX: dict[Source, int] = {
    "clips": 0,
    "cc_sbu_align": 1 << 32,
    "llava_instruct": 2 << 32,
    "audio_caption": 3 << 32,
}
"""Index of the first scene of every data set; the clips do not depend on how many there are."""

SAMPLE_RATE = 16_000
"""Samples per second of all sounds."""

ASPECTS = (1.0, 1.0, 4 / 3, 16 / 9)
"""Width over height of clips and pictures."""

FILES_PER_FOLDER = 1000
"""Clips that share a `page_dir`."""


@dataclass(frozen=True, kw_only=True)
class World:
    """What is common to all items.

    Attributes:
        seed: of the world, at least 0.
        size: pixels of the shorter side, even.
        fps: frames per second of clips.
    """

    seed: int = 0
    size: int = 96
    fps: float = 8.0


@dataclass(frozen=True, kw_only=True)
class Item:
    """One file to write.

    Attributes:
        world: what is common to all.
        source: the data set that it is for.
        split: which combinations and sounds may occur.
        number: of the item in its data set, from 0.
    """

    world: World
    source: Source
    split: Split
    number: int

    @property
    def index(self) -> int:
        """Index of the scene."""
        return FIRST_INDEX[self.source] + self.number

    @cached_property
    def scene(self) -> Scene:
        """What it shows; a picture shows one moment of what comes first."""
        scene = sample_scene(self.world.seed, self.split, self.index)
        if self.source in ("cc_sbu_align", "llava_instruct"):
            return replace(scene, sights=scene.sights[:1])
        return scene

    @cached_property
    def render_seed(self) -> int:
        """With which it is drawn and played."""
        return render_seed(self.world.seed, self.split, self.index)

    def rng(self, purpose: str) -> np.random.Generator:
        """Random numbers for a purpose that concerns this item."""
        return generator(self.render_seed, purpose)

    @property
    def name(self) -> str:
        """File name without suffix, or its part that the annotation names."""
        digits = 12 if self.source == "llava_instruct" else 6
        prefix = "" if self.source == "llava_instruct" else f"{self.split}_"
        return f"{prefix}{self.number:0{digits}d}"

    @property
    def page_dir(self) -> str:
        """Folder of a clip in the folder of clips."""
        return f"{self.number // FILES_PER_FOLDER:03d}"

    @property
    def path(self) -> str:
        """Where the file lies, relative to the folder of all data."""
        places: dict[Source, str] = {
            "clips": f"clips/{self.page_dir}/{self.name}.mp4",
            "cc_sbu_align": f"cc_sbu_align/image/{self.name}.jpg",
            "llava_instruct": f"llava_instruct/image/COCO_train2014_{self.name}.jpg",
            "audio_caption": f"audio_caption/audio/{self.name}.wav",
        }
        return f"{self.split}/{places[self.source]}"

    @property
    def height_width(self) -> tuple[int, int]:
        """Pixels of the picture."""
        aspect = ASPECTS[int(self.rng("aspect").integers(len(ASPECTS)))]
        return self.world.size, 2 * round(self.world.size * aspect / 2)


def write_item(item: Item, out: Path) -> None:
    """Draw, play and write one item.

    Args:
        item: what to write.
        out: folder of all data; the file's own folder exists.
    """
    scene, seed, path = item.scene, item.render_seed, out / item.path
    if item.source == "audio_caption":
        write_sound(path, render_sound(scene, seed, rate=SAMPLE_RATE), rate=SAMPLE_RATE)
        return
    height, width = item.height_width
    if item.source == "clips":
        times = frame_times(scene.duration, item.world.fps)
    else:
        times = [float(item.rng("moment").random())]
    frames = render_frames(scene, seed, height=height, width=width, times=times)
    if item.source == "clips":
        sound = render_sound(scene, seed, rate=SAMPLE_RATE)
        write_clip(path, frames, sound, fps=item.world.fps, rate=SAMPLE_RATE)
    else:
        write_picture(path, frames[0])
