"""Making media smaller before they are packed, so that training decodes fewer pixels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from numpy.typing import NDArray
from PIL import Image

from video_llama.processors.image import load_image
from video_llama.processors.media import find_audio, open_container, probe, require_video
from video_llama.types import MediaError

JPEG_QUALITY = 95
VIDEO_OPTIONS = {"crf": "20", "preset": "veryfast"}
MP4_SOUNDS = {"aac", "ac3", "alac", "flac", "mp3", "opus"}
"""Codecs of sound tracks that an mp4 can hold."""


def shrunk(path: Path, size: int) -> tuple[bytes, str]:
    """A picture or clip whose shorter side is at most `size`; the aspect ratio is kept.

    Frames keep their times and the sound track is copied as it is. A sound file stays untouched.

    Args:
        path: the media file.
        size: of the shorter side, pixels.

    Returns:
        The content of the new file, and its suffix without a dot.

    Raises:
        MediaError: it cannot be read.
    """
    info = probe(path)
    if info.kind == "audio":
        return path.read_bytes(), path.suffix.lstrip(".").lower()
    if info.kind == "image":
        return _picture(path, size), "jpg"
    suffix = "mp4" if info.audio_codec in {None, *MP4_SOUNDS} else "mkv"
    content = io.BytesIO()
    with (
        open_container(path) as source,
        av.open(content, "w", format="matroska" if suffix == "mkv" else "mp4") as target,
    ):
        _copy(source, target, path, size)
    return content.getvalue(), suffix


def _picture(path: Path, size: int) -> bytes:
    picture = load_image(path)
    picture = picture.resize(_smaller(picture.size, size), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=JPEG_QUALITY)
    return content.getvalue()


def _smaller(sides: tuple[int, int], size: int, multiple: int = 1) -> tuple[int, int]:
    scale = min(1.0, size / min(sides))
    width, height = (max(multiple, round(side * scale / multiple) * multiple) for side in sides)
    return width, height


def _copy(source: InputContainer, target: OutputContainer, path: Path, size: int) -> None:
    video, sound = require_video(source, path), find_audio(source)
    video.thread_type = "NONE"
    encoder: Any = None
    copied: AudioStream | None = None
    waiting: list[Packet[Any]] = []  # sound that comes before the first frame tells the size
    for packet in source.demux([video, sound] if sound else video):
        if packet.stream_index != video.index:
            waiting += [packet] if packet.dts is not None else []
        for frame in packet.decode() if packet.stream_index == video.index else ():
            if not isinstance(frame, VideoFrame):
                continue
            upright = _upright(frame)
            if encoder is None:
                encoder = _encoder(target, video, upright, size)
                copied = target.add_stream_from_template(sound) if sound else None
            target.mux(encoder.encode(_fitted(upright, frame, encoder)))
        if copied is not None:
            for held in waiting:
                held.stream = copied
                target.mux(held)
            waiting.clear()
    if encoder is None:
        raise MediaError(path, "its video track has no frames")
    target.mux(encoder.encode(None))


def _encoder(target: OutputContainer, video: VideoStream, frame: VideoFrame, size: int) -> Any:
    encoder: Any = target.add_stream("libx264", rate=video.average_rate or 25)
    encoder.width, encoder.height = _smaller((frame.width, frame.height), size, 2)
    encoder.pix_fmt, encoder.options = "yuv420p", VIDEO_OPTIONS
    encoder.codec_context.time_base = video.time_base
    return encoder


def _upright(frame: VideoFrame) -> VideoFrame:
    turns = round(frame.rotation / 90) % 4
    if not turns:
        return frame
    pixels: NDArray[np.uint8] = np.rot90(frame.to_ndarray(format="rgb24"), turns).astype(np.uint8)
    return VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")


def _fitted(picture: VideoFrame, original: VideoFrame, encoder: Any) -> VideoFrame:
    fitted = picture.reformat(encoder.width, encoder.height, "yuv420p", interpolation="BILINEAR")
    fitted.pts, fitted.time_base = original.pts, original.time_base
    return fitted
