"""Clips read for the tests, and what their pixels say about which frames they hold."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests import media
from video_llama.processors.settings import VideoEvalSettings
from video_llama.processors.video import VideoClip


def load(path: Path, **settings: object) -> VideoClip:
    """The frames of a clip, 32 pixels wide and high unless `image_size` is given."""
    return VideoEvalSettings(**{"image_size": 32, **settings}).build()(path)  # type: ignore[arg-type]


def levels(clip: VideoClip) -> list[int]:
    """Grey levels near the lower edge of every frame."""
    return [int(level) for level in clip.frames[0, :, 26, 16]]


def assert_right_frames(clip: VideoClip, tolerance: int = 6) -> None:
    """Frames of `media.write_video` are those that their indices name."""
    wanted = [media.frame_level(index, clip.num_frames_total) for index in clip.indices]
    assert np.abs(np.subtract(levels(clip), wanted)).max() <= tolerance


def numbers(clip: VideoClip) -> list[int | None]:
    """The numbers drawn in the frames of `media.write_numbered`."""
    return [media.read_number(frame) for frame in clip.frames.permute(1, 2, 3, 0).numpy()]


def assert_numbered(path: Path, count: int, **settings: object) -> VideoClip:
    """A file of `media.write_numbered` gives the frames that the indices name, of `count`."""
    clip = load(path, image_size=160, **settings)
    assert (clip.num_frames_total, numbers(clip)) == (count, clip.indices)
    return clip
