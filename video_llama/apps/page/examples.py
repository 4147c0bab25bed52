"""Example clips, a picture and a sound, rendered from the synthetic world when the page starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from video_llama.synthetic.draw import frame_times, render_frames
from video_llama.synthetic.media import write_clip, write_picture, write_sound
from video_llama.synthetic.play import render_sound
from video_llama.synthetic.scene import Scene, Sight, Sound

Slot = Literal["video", "picture", "sound"]

SIZE = (192, 256)
"""Height and width, pixels."""

FRAMES_PER_SECOND = 8
SAMPLES_PER_SECOND = 16_000


@dataclass(frozen=True)
class Example:
    """A file with a question about it; `label` is the text of its button on the page."""

    label: str
    file: str
    slot: Slot
    question: str
    scene: Scene


_BIRD = Sight(kind="bird", colour="yellow", motion="right", size=0.5, speed=0.38)
_BELLS = Sight(kind="bell", colour="red", motion="up", number=2, size=0.33, speed=0.3)
_SIREN = Sight(kind="siren", colour="blue", motion="still", size=0.55)
_BIRD_SONG, _DRUM, _WHISTLE = (Sound(kind="bird"), Sound(kind="drum"), Sound(kind="whistle"))

_CLIP = Scene(sights=(_BIRD,), sounds=(_BIRD_SONG,))
_CONTRADICTION = Scene(sights=(_BELLS,), sounds=(_DRUM,), background="cluttered")
_SILENT = Scene(sights=(_SIREN,), background="cluttered")
_SEE, _HEAR = "What do you see?", "What do you hear?"

EXAMPLES = (
    Example("A clip with sound", "bird.mp4", "video", _SEE, _CLIP),
    Example("Seen and heard differ", "bells_and_a_drum.mp4", "video", _HEAR, _CONTRADICTION),
    Example("A clip without sound", "silent_siren.mp4", "video", _HEAR, _SILENT),
    Example("A picture", "two_bells.jpg", "picture", _SEE, Scene(sights=(_BELLS,))),
    Example("A sound", "whistle.wav", "sound", _HEAR, Scene(sounds=(_WHISTLE,))),
)


def write_examples(folder: Path) -> dict[str, Path]:
    """Render every example; the files hold the same bytes each time.

    Returns:
        The paths, by the name of the file.
    """
    # Rendered anew, so that the package carries no media.
    for example in EXAMPLES:
        _write(example, folder / example.file)
    return {example.file: folder / example.file for example in EXAMPLES}


def write_icons(folder: Path) -> dict[str, Path]:
    """Draw a thumbnail of each example that can be seen.

    Returns:
        The paths, by the name of the example's file.
    """
    icons = {}
    for example in EXAMPLES:
        if example.scene.sights:
            icons[example.file] = folder / f"{Path(example.file).stem}_icon.jpg"
            (frame,) = render_frames(example.scene, 0, height=96, width=128, times=[0.5])
            write_picture(icons[example.file], frame)
    return icons


def _write(example: Example, path: Path) -> None:
    scene, (height, width) = example.scene, SIZE
    if example.slot == "sound":
        write_sound(path, render_sound(scene, 0, rate=SAMPLES_PER_SECOND), rate=SAMPLES_PER_SECOND)
        return
    if example.slot == "picture":
        write_picture(path, render_frames(scene, 0, height=height, width=width, times=[0.5])[0])
        return
    times = frame_times(scene.duration, FRAMES_PER_SECOND)
    frames = render_frames(scene, 0, height=height, width=width, times=times)
    sound = None if scene.silent else render_sound(scene, 0, rate=SAMPLES_PER_SECOND)
    write_clip(path, frames, sound, fps=FRAMES_PER_SECOND, rate=SAMPLES_PER_SECOND)
