"""Writing clips, pictures and sounds as real files, the same bytes for the same content."""

from __future__ import annotations

import wave
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray
from PIL import Image

KEYFRAME_EVERY = 8
"""Frames from one whole picture of a clip to the next."""

SOUND_BITS_PER_SECOND = 40_000
"""Of a clip's sound track."""

JPEG_QUALITY = 92
"""Of pictures, up to 100."""

_SOUND_PIECE = 1024

_QUICK_AAC = {"aac_coder": "fast", "aac_tns": "0"}
"""A quarter of the default's time; spectrograms of the world's sounds come out as near."""


def video_codec() -> str:
    """The encoder of clips: H.264, or MPEG-4 where FFmpeg was built without it."""
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
    codec, rational = video_codec(), Fraction(fps).limit_denominator(1001)
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        # Typed as Any: which class a stream is follows from the name of its codec.
        video: Any = container.add_stream(codec, rate=rational)
        video.height, video.width = frames.shape[1:3]
        video.pix_fmt = "yuv420p"
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
