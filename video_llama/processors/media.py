"""Probe and open media files without trusting them.

Whatever is wrong with a file becomes a `MediaError` with a reason in plain words, also what it
would cost too much to read (`limits.LIMITS`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import av
import av.logging
from av.audio.stream import AudioStream
from av.container import InputContainer
from av.stream import Disposition
from av.video.stream import VideoStream

from video_llama.common.io import check_file
from video_llama.processors.limits import check_frame_size, limit, refuse_cost
from video_llama.processors.picture_file import (
    is_jpeg,
    is_sound_file,
    read_picture_info,
    refuse_foreign,
)
from video_llama.types import MediaError

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
        has_video: there is a video track, perhaps in a codec that cannot be decoded. Cover art of
            a song does not count.
        has_audio: there is a sound track.
        width: of the picture, in pixels, before any rotation; None without one.
        height: likewise.
        duration: seconds; None if the header does not say.
        num_frames: frames of the video track; None if the header does not say.
        fps: frames per second of the video track.
        sample_rate: Hz of the sound track.
        num_channels: of the sound track.
        video_codec: FFmpeg's name of the codec; None if it is unknown.
        audio_codec: likewise.
        notice: what the user should know about the file; empty if nothing.
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
    notice: str = ""


def probe(path: str | Path) -> MediaInfo:
    """Tell from its header what a file holds.

    Args:
        path: of a picture, a video or a sound.

    Raises:
        MediaError: it does not exist, cannot be read or holds neither.
    """
    if (picture := read_picture_info(path)) is not None:
        width, height, notice = picture
        return MediaInfo(path=Path(path), kind="image", width=width, height=height, notice=notice)
    with open_container(path) as container:
        name = container.format.name
        if "_pipe" in name or name in ("image2", "ico"):
            # Those that people have are Pillow's; FFmpeg would make a clip of one frame.
            kind = name.removesuffix("_pipe")
            hint = "save it as PNG or JPEG"
            raise MediaError(path, f"it is a picture in a format that is not read ({kind}); {hint}")
        video, audio = find_video(container), find_audio(container)
        # A clip whose picture cannot be decoded stays a clip: reading its frames then fails with
        # the codec's name, while a silent change to a sound would answer about something else.
        has_video = video is not None or _has_unknown_video(container)
        if not has_video and audio is None:
            raise MediaError(path, "it has neither a video nor a sound track")
        return MediaInfo(
            path=Path(path),
            kind="video" if has_video else "audio",
            has_video=has_video,
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
    """Tell whether a media file has a sound track; a picture has none.

    Raises:
        MediaError: the file cannot be read.
    """
    return probe(path).has_audio


@contextmanager
def open_container(path: str | Path) -> Iterator[InputContainer]:
    """Open a media file and close it at the end; FFmpeg's errors inside become `MediaError`.

    Raises:
        MediaError: the file cannot be read, or reading on fails.
    """
    absolute = check_file(path)
    refuse_foreign(path)
    try:
        # The prefix keeps names such as `http:x` and `-x` from being anything but files, and the
        # list keeps a playlist from opening what it names. FFmpeg decodes a frame of every track
        # to learn its size, also of the pictures on the cover of a song, which nobody needs.
        pixels = 1 if is_sound_file(path) else limit("frame_pixels")
        options = {"protocol_whitelist": "file", "max_pixels": str(pixels)}
        container = av.open(f"file:{absolute}", options=options, metadata_errors="ignore")
    except (av.FFmpegError, ValueError) as error:
        raise MediaError(path, "it is not a media file, or its header is damaged") from error
    with container:
        if _NOT_MEDIA & set(container.format.name.split(",")):
            raise MediaError(path, "it is text, not a media file")
        if container.format.name == "mjpeg" and not is_jpeg(path):
            raise MediaError(path, "it is not a media file, although there is a JPEG inside it")
        if len(container.streams) > limit("tracks"):
            refuse_cost(path, f"it has {len(container.streams)} tracks", "tracks", "tracks")
        try:
            yield container
        except (av.FFmpegError, UnicodeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            raise MediaError(path, f"its contents are damaged ({reason})") from error


def find_video(container: InputContainer) -> VideoStream | None:
    """Return the video track, or None; cover art or a track in an unknown codec does not count."""
    # FFmpeg prefers a cover to a clip when the cover is larger.
    best = container.streams.best("video")
    candidates = [best, *container.streams.video] if isinstance(best, VideoStream) else []
    for stream in candidates:
        if stream.codec_context and not _is_cover(stream):
            return stream
    return None


def _is_cover(stream: VideoStream) -> bool:
    return bool(stream.disposition & Disposition.attached_pic)


def _has_unknown_video(container: InputContainer) -> bool:
    return any(not s.codec_context and not _is_cover(s) for s in container.streams.video)


def require_video(container: InputContainer, path: str | Path) -> VideoStream:
    """Return the video track of a file that must have one that can be decoded within reason.

    Raises:
        MediaError: it is a picture, has no video track, one in an unknown codec, or one with an
            absurd picture size.
    """
    if "_pipe" in container.format.name or container.format.name == "image2":
        raise MediaError(path, "it is a picture, a video was expected")
    stream = find_video(container)
    if stream is None and _has_unknown_video(container):
        reason = f"its pictures are in a codec that cannot be decoded ({_unknown_codec(path)})"
        hint = "; convert it to H.264"
        if find_audio(container) is not None:
            hint += ", or give it as a sound, then only its sound is heard"
        raise MediaError(path, reason + hint)
    if stream is None:
        raise MediaError(path, "it has no video track that can be decoded")
    # QuickTime has raw pictures in layouts that FFmpeg does not know.
    if stream.codec_context.name == "rawvideo" and stream.codec_context.pix_fmt is None:
        raise MediaError(path, "its raw pictures are in a pixel format that cannot be decoded")
    width, height = stream.codec_context.width, stream.codec_context.height
    if width < 1 or height < 1:
        # FFmpeg leaves the size open where it may not decode the first frame for its size.
        reason = "its video track cannot be decoded: the picture has no size or is too large"
        refuse_cost(path, reason, "frame_pixels", "pixels")
    check_frame_size(path, width, height)
    return stream


def _unknown_codec(path: str | Path) -> str:
    """Return the tag of the unknown video codec, which FFmpeg tells in its messages only."""
    # Messages are off otherwise: FFmpeg writes many, and none that a user could act on.
    level = av.logging.get_level()
    av.logging.set_level(av.logging.WARNING)
    try:
        with av.logging.Capture() as messages, open_container(path):
            pass
    finally:
        av.logging.set_level(level)
    text = " ".join(message for _, _, message in messages)
    if found := re.search(r"Video: none \((.{1,4}) /", text):
        return f"tag {found[1]}"
    # Matroska has names in place of tags. They stand in its first kilobytes.
    with Path(path).open("rb") as file:
        name = re.search(rb"V_[A-Z0-9_/]{2,40}", file.read(2**16))
    return f"tag {name[0].decode()}" if name else "it has no tag"


def find_audio(container: InputContainer) -> AudioStream | None:
    """Return the sound track, or None; a track in an unknown codec does not count."""
    stream = container.streams.best("audio")
    if not isinstance(stream, AudioStream) or stream.codec_context is None:
        return None
    return stream


def duration_of(
    container: InputContainer, stream: VideoStream | AudioStream | None
) -> float | None:
    """Return the seconds of a track, or of its file where it says none; None if unknown."""
    # The track comes first: a file is as long as its longest track.
    seconds = 0.0
    if stream is not None and stream.duration and stream.time_base:
        seconds = float(stream.duration * stream.time_base)
    elif container.duration:
        seconds = container.duration / av.time_base
    return seconds if math.isfinite(seconds) and seconds > 0 else None


def check_end(path: str | Path, track: str, seconds: float, promised: float) -> None:
    """Raise `MediaError` for a track that ends much earlier than its header promises."""
    # Headers round, so a little less than promised is complete.
    if seconds < 0.9 * promised and seconds < promised - 0.5:
        reason = f"its {track} ends at {seconds:.4g} s of {promised:.4g} s"
        raise MediaError(path, f"{reason}; the file is cut short or damaged")


def frame_rate(stream: VideoStream) -> float | None:
    """Return the average frames per second that the header states; None if it states none."""
    rate = stream.average_rate or stream.guessed_rate
    return float(rate) if rate and rate > 0 else None


TOGETHER = 0.1
"""Seconds by which sound and picture may start apart and still count as starting together.

Encoders of sound put up to this much silence before its start, which not all containers mark.
"""


def presentation_start(container: InputContainer) -> float:
    """Return the time of the file's clock at which showing it begins, in seconds.

    Frames and sound are timed from there. It is the start of the picture, unless the sound starts
    more than `TOGETHER` earlier: then it is the start of the sound.
    """
    # The first packets say this, so it holds for a track without an edit list too.
    starts = [
        float(stream.start_time * stream.time_base)
        for stream in (find_video(container), find_audio(container))
        if stream is not None and stream.start_time is not None and stream.time_base
    ]
    if not starts:
        return 0.0
    return starts[0] if starts[0] <= min(starts) + TOGETHER else min(starts)
