"""The checks that come before a file is opened as media, and reading its bytes.

Media files: what is in them, and opening them without trusting them.

Everything that is wrong with a file becomes a `MediaError` with a reason in plain words.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from video_llama.common.io import check_file
from video_llama.processors.image import picture_size
from video_llama.types import MediaError

MAX_FRAME_PIXELS = 2**26
"""Largest picture of a video, in pixels: twice 8K. More is taken for a damaged header."""

MAX_SAMPLE_RATE = 768_000
"""Highest sample rate of a sound, in Hz."""

MIN_SAMPLE_RATE = 1000
"""Lowest sample rate of a sound, in Hz."""

_NOT_MEDIA = {"concat", "dash", "ffmetadata", "hls", "lavfi", "rtsp", "sdp", "tty"}
"""Demuxers of FFmpeg that take text for media, or that follow links in it."""


class NoSoundError(MediaError):
    """A media file that is fine but has no sound track."""


@dataclass(frozen=True, kw_only=True)
class MediaInfo:
    """What a media file holds, as its header says.

    Attributes:
        path: the file, as given.
        kind: what to treat it as; a video with sound is a `video`, an animated GIF too.
        has_video: there is a video track (cover art of a song is none).
        has_audio: there is a sound track.
        width: of the picture, in pixels, before any rotation; None without one.
        height: likewise.
        duration: seconds; None if the header does not say.
        num_frames: frames of the video track; None if the header does not say.
        fps: frames per second of the video track.
        sample_rate: Hz of the sound track.
        num_channels: of the sound track.
        video_codec: FFmpeg's name of the codec.
        audio_codec: likewise.
    """

    path: Path
    kind: Literal["image", "video", "audio"]
    has_video: bool = False
    has_audio: bool = False
    width: int | None = None
    height: int | None = None
    duration: float | None = None
    num_frames: int | None = None
    fps: float | None = None
    sample_rate: int | None = None
    num_channels: int | None = None
    video_codec: str | None = None
    audio_codec: str | None = None


def probe(path: str | Path) -> MediaInfo:
    """What a file holds. Reads its header only.

    Args:
        path: of a picture, a video or a sound.

    Raises:
        MediaError: it does not exist, cannot be read or holds neither.
    """
    size = picture_size(check_file(path))
    if size is not None:
        return MediaInfo(path=Path(path), kind="image", width=size[0], height=size[1])
    with open_container(path) as container:
        video, audio = find_video(container), find_audio(container)
        if video is None and audio is None:
            raise MediaError(path, "it has neither a video nor a sound track")
        return MediaInfo(
            path=Path(path),
            kind="audio" if video is None else "video",
            has_video=video is not None,
            has_audio=audio is not None,
            width=video.width if video else None,
            height=video.height if video else None,
            duration=duration_of(container, video or audio),
            num_frames=(video.frames or None) if video else None,
            fps=frame_rate(video) if video else None,
            sample_rate=audio.sample_rate if audio else None,
            num_channels=audio.channels if audio else None,
            video_codec=video.codec_context.name if video else None,
            audio_codec=audio.codec_context.name if audio else None,
        )


def has_audio(path: str | Path) -> bool:
    """Whether a media file has a sound track; a picture has none.

    Raises:
        MediaError: the file cannot be read.
    """
    return probe(path).has_audio


@contextmanager
def open_container(path: str | Path) -> Iterator[InputContainer]:
    """An open media file, closed at the end; FFmpeg's errors inside become `MediaError`.

    Args:
        path: of a video or a sound.

    Raises:
        MediaError: the file cannot be read, or reading on fails.
    """
    absolute = check_file(path)
    try:
        # The prefix keeps names such as `http:x` and `-x` from being anything but files, and the
        # list keeps a playlist from opening what it names.
        options = {"protocol_whitelist": "file"}
        container = av.open(f"file:{absolute}", options=options, metadata_errors="ignore")
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(path, "it is not a media file, or its header is damaged") from error
    with container:
        if _NOT_MEDIA & set(container.format.name.split(",")):
            raise MediaError(path, "it is text, a media file was expected")
        try:
            yield container
        except (av.FFmpegError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise MediaError(path, f"its contents are damaged ({reason})") from error


def find_video(container: InputContainer) -> VideoStream | None:
    """The video track, or None; cover art is not one, nor is a track in an unknown codec."""
    stream = container.streams.best("video")
    if not isinstance(stream, VideoStream) or stream.codec_context is None:
        return None
    return None if stream.disposition & Disposition.attached_pic else stream


def require_video(container: InputContainer, path: str | Path) -> VideoStream:
    """The video track of a file that must have one that can be decoded within reason.

    Args:
        container: the open file.
        path: for the message.

    Raises:
        MediaError: it is a picture, has no video track, or one with an absurd picture size.
    """
    if "_pipe" in container.format.name or container.format.name == "image2":
        raise MediaError(path, "it is a picture, a video was expected")
    stream = find_video(container)
    if stream is None:
        raise MediaError(path, "it has no video track that can be decoded")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width < 1 or height < 1:
        raise MediaError(path, "its video track cannot be decoded: the picture has no size")
    if width * height > MAX_FRAME_PIXELS:
        reason = f"frames of {width}x{height} pixels are too large"
        raise MediaError(path, f"{reason}, at most {MAX_FRAME_PIXELS} pixels can be read")
    return stream


def find_audio(container: InputContainer) -> AudioStream | None:
    """The sound track, or None; a track in an unknown codec is not one."""
    stream = container.streams.best("audio")
    if not isinstance(stream, AudioStream) or stream.codec_context is None:
        return None
    return stream


def duration_of(
    container: InputContainer, stream: VideoStream | AudioStream | None
) -> float | None:
    """Seconds of a track, or of its file where the track does not say; None if unknown."""
    seconds = 0.0
    if stream is not None and stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration:
        seconds = container.duration / av.time_base
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def frame_rate(stream: VideoStream) -> float | None:
    """Average frames per second that the header states; None if it states none."""
    rate = stream.average_rate or stream.guessed_rate
    return float(rate) if rate and rate > 0 else None
