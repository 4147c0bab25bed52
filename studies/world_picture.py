"""Draw the world for people: every thing, and some clips as strips of eight frames.

python -m studies.world_picture [FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from video_llama.synthetic.draw import render_frames
from video_llama.synthetic.language import clip_caption
from video_llama.synthetic.play import render_sound
from video_llama.synthetic.scene import COLOURS, KINDS, Scene, Sight
from video_llama.synthetic.splits import generator, render_seed, sample_scene

CELL = 64
"""Pixels of a frame's height and width."""

NUM_FRAMES = 8
"""Frames of a strip."""

LEGEND = 16
"""Pixels of a line of text."""

INK = (235, 235, 235)
PAPER = (20, 20, 20)
_RATE = 16_000


def contact_sheet(seed: int = 0, *, num_clips: int = 10) -> Image.Image:
    """Draw every thing in every colour, then strips of clips with captions and spectrograms."""
    rows = [_colours(), *(_strip(seed, index) for index in range(num_clips))]
    width = max(row.shape[1] for row in rows)
    # Strips are wider than the sheet of things: all get one width.
    padded = [np.pad(row, ((0, 0), (0, width - row.shape[1]), (0, 0))) for row in rows]
    return Image.fromarray(np.concatenate(padded))


def _colours() -> NDArray[np.uint8]:
    rows = []
    for place in range(len(COLOURS)):
        row = []
        for number, kind in enumerate(KINDS):
            # Shifted from row to row, so that neighbours differ in both directions.
            colour = COLOURS[(place + number) % len(COLOURS)]
            sight = Sight(kind=kind, colour=colour, motion="still", size=0.8)
            scene = Scene(sights=(sight,), background=("plain", "cluttered")[place % 2])
            row.append(render_frames(scene, place, height=CELL, width=CELL, times=[0.0])[0])
        rows.append(np.concatenate(row, axis=1))
    return np.concatenate(rows)


def _strip(seed: int, index: int) -> NDArray[np.uint8]:
    scene, own = sample_scene(seed, "train", index), render_seed(seed, "train", index)
    times = [frame / NUM_FRAMES for frame in range(NUM_FRAMES)]
    frames = render_frames(scene, own, height=CELL, width=CELL, times=times)
    sounds = " then ".join(sound.kind for sound in scene.sounds) or "nothing"
    text = f"{clip_caption(scene, generator(own, 'caption'))} (heard: {sounds})"
    width = CELL * (NUM_FRAMES + 2)
    legend = Image.new("RGB", (width, LEGEND), PAPER)
    ImageDraw.Draw(legend).text((4, 2), text, fill=INK)
    spectrum = _spectrogram(render_sound(scene, own, rate=_RATE))
    return np.concatenate([np.asarray(legend), np.concatenate([*frames, spectrum], axis=1)])


def _spectrogram(wave: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Draw loudness over time and frequency up to 8 kHz, as (CELL, 2 CELL, 3) uint8."""
    window = 2 * CELL
    starts = np.linspace(0, len(wave) - window, 2 * CELL).astype(int)
    pieces = np.stack([wave[start : start + window] for start in starts]) * np.hanning(window)
    # No mel scale: a plain spectrum shows which things sound high and which low.
    levels = np.log10(np.abs(np.fft.rfft(pieces, axis=1)[:, 1:]) + 1e-3)
    scaled = np.clip((levels + 2) / 4 * 255, 0, 255).astype(np.uint8)
    return np.repeat(np.flipud(scaled.T)[:, :, None], 3, axis=2)


def main(arguments: list[str] | None = None) -> None:
    """Draw and write a PNG file with at most 128 colours."""
    parser = argparse.ArgumentParser(description=contact_sheet.__doc__)
    parser.add_argument("file", nargs="?", type=Path, default=Path("docs/world.png"))
    path: Path = parser.parse_args(arguments).file
    path.parent.mkdir(parents=True, exist_ok=True)
    contact_sheet().quantize(128, Image.Quantize.FASTOCTREE).save(path, optimize=True)


if __name__ == "__main__":
    main()
