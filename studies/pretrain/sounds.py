"""Short sounds of the training split beside pictures of what is heard in their middle."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from tqdm import tqdm

from video_llama.processors.audio import log_mel
from video_llama.processors.settings import AudioSettings
from video_llama.synthetic.play import render_sound
from video_llama.synthetic.scene import KINDS
from video_llama.synthetic.splits import Split, generator, render_seed, sample_scene

SILENT = 0.14
"""Share of sounds that are hiss only, about one in seven."""


@dataclass(frozen=True, kw_only=True)
class Sounds:
    """Sounds and what makes them.

    Attributes:
        spectrograms: (N, 1, mel, frames) float16, normalised.
        kinds: (N,) int64, 1 more than the index of the kind, 0 for silence.
    """

    spectrograms: Tensor
    kinds: Tensor


def play_sounds(seed: int, split: Split, count: int) -> Sounds:
    """A clip of each of many scenes; two sounds may meet in it.

    Args:
        seed: of the world.
        split: from which ranges the parameters of the sounds come.
        count: clips.
    """
    settings = AudioSettings(name="imagebind_audio")
    spectrograms, kinds = list[Tensor](), torch.zeros(count, dtype=torch.int64)
    for index in tqdm(range(count), desc=f"sounds ({split})", mininterval=1.0):
        scene = sample_scene(seed, split, index)
        rng = generator(seed, f"clip/{split}", index)
        if rng.random() < SILENT:
            scene = replace(scene, sounds=())
        rate = settings.sample_rate
        wave = render_sound(scene, render_seed(seed, split, index), rate=rate)
        length = int(settings.clip_samples)
        first = int(rng.integers(max(1, len(wave) - length)))
        clip = torch.from_numpy(wave[first : first + length])[None]
        spectrograms.append(log_mel([clip], settings)[0].half())
        middle = (first + length / 2) / len(wave)
        for sound, (begin, end) in zip(scene.sounds, scene.spans(len(scene.sounds)), strict=True):
            if begin <= middle < end:
                kinds[index] = 1 + KINDS.index(sound.kind)
    return Sounds(spectrograms=torch.stack(spectrograms), kinds=kinds)
