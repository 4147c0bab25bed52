"""Write the files of the world: which there are, of which scenes, and how one is encoded.

The same content gives the same bytes.
"""

from __future__ import annotations

import wave
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from video_llama.synthetic.draw import frame_times, render_frames
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

KEYFRAME_EVERY = 8
"""Frames from one whole picture of a clip to the next."""

SOUND_BITS_PER_SECOND = 40_000
"""Of a clip's sound track."""

JPEG_QUALITY = 92
"""Of pictures, up to 100."""

_SOUND_PIECE = 1024

_QUICK_AAC = {"aac_coder": "fast", "aac_tns": "0"}
"""A quarter of the default's time; spectrograms of the world's sounds come out as near."""


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
class WorldItem:
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
        """Return the index of the scene."""
        return FIRST_INDEX[self.source] + self.number

    @cached_property
    def scene(self) -> Scene:
        """Sample what it shows; a picture shows one moment of what comes first."""
        scene = sample_scene(self.world.seed, self.split, self.index)
        if self.source in ("cc_sbu_align", "llava_instruct"):
            return replace(scene, sights=scene.sights[:1])
        return scene

    @cached_property
    def render_seed(self) -> int:
        """Return the seed with which it is drawn and played."""
        return render_seed(self.world.seed, self.split, self.index)

    def rng(self, purpose: str) -> np.random.Generator:
        """Return random numbers for a purpose that concerns this file."""
        return generator(self.render_seed, purpose)

    @property
    def name(self) -> str:
        """Name the file without suffix, or the part of it that the annotation names."""
        digits = 12 if self.source == "llava_instruct" else 6
        prefix = "" if self.source == "llava_instruct" else f"{self.split}_"
        return f"{prefix}{self.number:0{digits}d}"

    @property
    def page_dir(self) -> str:
        """Name the folder of a clip in the folder of clips."""
        return f"{self.number // FILES_PER_FOLDER:03d}"

    @property
    def path(self) -> str:
        """Say where the file lies, relative to the folder of all data."""
        places: dict[Source, str] = {
            "clips": f"clips/{self.page_dir}/{self.name}.mp4",
            "cc_sbu_align": f"cc_sbu_align/image/{self.name}.jpg",
            "llava_instruct": f"llava_instruct/image/COCO_train2014_{self.name}.jpg",
            "audio_caption": f"audio_caption/audio/{self.name}.wav",
        }
        return f"{self.split}/{places[self.source]}"

    @property
    def height_width(self) -> tuple[int, int]:
        """Return height and width in pixels."""
        aspect = ASPECTS[int(self.rng("aspect").integers(len(ASPECTS)))]
        return self.world.size, 2 * round(self.world.size * aspect / 2)


def write_item(item: WorldItem, out: Path) -> None:
    """Draw, play and write one file.

    Args:
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


def video_codec() -> str:
    """Name the encoder of clips: H.264, or MPEG-4 where FFmpeg was built without it."""
    return "libx264" if "libx264" in av.codecs_available else "mpeg4"


def write_clip(
    path: Path,
    frames: NDArray[np.uint8],
    sound: NDArray[np.float32] | None,
    *,
    fps: float,
    rate: int,
) -> None:
    """Write a clip; the container follows the suffix of its name.

    Args:
        path: the file; its folder exists.
        frames: (T, H, W, 3) uint8, RGB; height and width are even.
        sound: (L,) float32 in -1..1; None: no sound track.
        fps: frames per second.
        rate: samples per second.
    """
    # Bit-exact: no version or time stamps of the encoder, so equal content gives equal bytes.
    codec, rational = video_codec(), Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        # Typed as Any: which class a stream is follows from the name of its codec.
        video: Any = container.add_stream(codec, rate=rational)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
        # Several threads cut a picture differently from run to run.
        video.codec_context.thread_count = 1
        video.codec_context.gop_size = KEYFRAME_EVERY
        if codec == "libx264":
            # Macroblock trees read memory that nobody wrote: without them the bytes repeat.
            exact = {"x264-params": "cpu-independent=1:mbtree=0"}
            video.options = {"preset": "veryfast", "crf": "20", **exact}
        else:
            video.options = {"qscale": "3"}
        audio: Any = None
        if sound is not None:
            audio = container.add_stream("aac", rate=rate, layout="mono")
            audio.bit_rate = SOUND_BITS_PER_SECOND
            audio.options = _QUICK_AAC
        for picture in frames:
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            container.mux(video.encode(frame))
        container.mux(video.encode(None))
        if sound is not None:
            _encode_sound(container, audio, sound, rate)


def _encode_sound(container: Any, stream: Any, sound: NDArray[np.float32], rate: int) -> None:
    for start in range(0, len(sound), _SOUND_PIECE):
        piece = np.ascontiguousarray(sound[None, start : start + _SOUND_PIECE])
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = rate, start, Fraction(1, rate)
        container.mux(stream.encode(frame))
    container.mux(stream.encode(None))


def write_picture(path: Path, picture: NDArray[np.uint8]) -> None:
    """Write a JPEG file.

    Args:
        path: the file; its folder exists.
        picture: (H, W, 3) uint8, RGB.
    """
    Image.fromarray(picture).save(path, "JPEG", quality=JPEG_QUALITY)


def write_sound(path: Path, sound: NDArray[np.float32], *, rate: int) -> None:
    """Write a WAV file of 16 bits and one channel.

    Args:
        path: the file; its folder exists.
        sound: (L,) float32 in -1..1.
        rate: samples per second.
    """
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(np.round(sound * 32767).astype("<i2").tobytes())
