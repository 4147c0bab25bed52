"""Read everything that a chat needs of one file in one call, which a worker process can run.

A clip with good frames stays usable when its sound is not: the sound is then left out, with a
notice that says why, as for a clip without a sound track.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from torch import Tensor

from video_llama.processors.audio import AudioClips, AudioProcessor
from video_llama.processors.image import ImageProcessor
from video_llama.processors.media import MediaInfo, probe
from video_llama.processors.video import VideoClip, VideoProcessor
from video_llama.types import MediaError


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodedFile:
    """What was read of a file.

    Attributes:
        kind: what it was taken for.
        picture: (3, size, size) float32 of a picture, normalised; None for anything else.
        clip: the frames of a video; None for anything else, or if no frames were wanted.
        sound: None for a picture, for a clip without a sound that can be used, or if no sound was
            wanted.
        notice: why the sound of a clip is not there although it was wanted, or what else the user
            should know about the file; empty if nothing.
    """

    info: MediaInfo
    kind: Literal["image", "video", "audio"]
    picture: Tensor | None = None
    clip: VideoClip | None = None
    sound: AudioClips | None = None
    notice: str = ""


def decode_file(
    path: str | Path,
    kind: Literal["image", "video", "audio"] | None = None,
    *,
    image: ImageProcessor | None = None,
    video: VideoProcessor | None = None,
    audio: AudioProcessor | None = None,
) -> DecodedFile:
    """Read a picture, a clip with its sound, or a sound.

    Args:
        kind: what to take it for; None: what it is.
        image: for pictures; needed if the file is one.
        video: for the frames of clips; None leaves the frames out.
        audio: for sounds and the sound of clips; None leaves the sound out.

    Raises:
        MediaError: the file cannot be used.
    """
    info = probe(path)
    kind = kind or info.kind
    if kind == "image":
        picture = image(path) if image is not None else None
        return DecodedFile(info=info, kind=kind, picture=picture, notice=info.notice)
    if kind == "audio":
        sound = audio(path) if audio is not None else None
        return DecodedFile(
            info=info, kind=kind, sound=sound, notice=sound.notice if sound is not None else ""
        )
    # Frames first: without them the sound is of no use either, and the error is about them.
    clip = video(path) if video is not None else None
    sound, notice = _sound_of_clip(path, audio) if audio is not None else (None, "")
    return DecodedFile(info=info, kind=kind, clip=clip, sound=sound, notice=notice)


def _sound_of_clip(path: str | Path, audio: AudioProcessor) -> tuple[AudioClips | None, str]:
    """Return the sound of a clip, or why it cannot be used (there may be none)."""
    try:
        sound = audio(path)
    except MediaError as error:
        return None, error.reason
    return sound, sound.notice
