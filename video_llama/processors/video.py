"""Which frames of a video are looked at. Indices are exact integers, counted from 0.

Clips: chosen frames of a video, as the model takes them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from video_llama.processors.image import (
    PictureOptions,
    crop_and_resize,
    normalise,
    random_crop_box,
    require_generator,
)
from video_llama.processors.video_reader import read_frames
from video_llama.types import MediaError


def frame_window(
    num_frames: int, fps: float, *, start: float = 0.0, end: float | None = None
) -> range:
    """The frames shown from `start` to `end`.

    Args:
        num_frames: frames of the video.
        fps: frames per second.
        start: seconds; the first frame of the window is not earlier.
        end: seconds; the frames of the window are earlier than this. None is the end of the video.

    Returns:
        Indices that follow one another; at least one frame when `start` lies in the video.

    Raises:
        ValueError: `start` lies behind the last frame.
    """
    # Times such as 0.3 s are rounded up before they get here; a frame must not fall out for that.
    slack = 1e-6
    first = math.ceil(min(start * fps, num_frames) - slack)
    if first >= num_frames:
        raise ValueError(f"the part from {start:g} s is empty, it lasts {num_frames / fps:.4g} s")
    last = num_frames if end is None else math.ceil(min(end * fps, num_frames) - slack)
    return range(first, max(first + 1, last))


def uniform(window: range, count: int) -> list[int]:
    """The first frame of each of `count` equal parts of the window: floor(i * length / count).

    Args:
        window: frames to choose from.
        count: frames wanted; a shorter window gives all of its frames.
    """
    count = min(count, len(window))
    return [window[i * len(window) // count] for i in range(count)]


def headtail(window: range, count: int, generator: torch.Generator) -> list[int]:
    """Random frames, half of them from each half of the window, in order and without repetition.

    When `count` is odd the second half gives one more, as it does when the window's length is.

    Args:
        window: frames to choose from.
        count: frames wanted; a shorter window gives all of its frames.
        generator: source of the random choice.
    """
    count = min(count, len(window))
    half = len(window) // 2
    head = torch.randperm(half, generator=generator)[: count // 2]
    tail = half + torch.randperm(len(window) - half, generator=generator)[: count - count // 2]
    return sorted(window[i] for i in torch.cat([head, tail]).tolist())


def at_rate(window: range, count: int, *, fps: float, rate: float) -> list[int]:
    """A frame every `1 / rate` seconds; spread over the window when that is more than `count`.

    Args:
        window: frames to choose from.
        count: most frames wanted.
        fps: frames per second of the video.
        rate: frames per second wanted; above `fps` every frame is taken once.
    """
    step = max(1.0, fps / rate)
    wanted = math.ceil(len(window) / step)
    if wanted > count:
        return uniform(window, count)
    return [window[int(i * step)] for i in range(wanted)]


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoClip:
    """Frames of a video, T of them.

    Attributes:
        frames: (3, T, size, size) uint8, RGB, the whole picture.
        pixel_values: (3, T, size, size) float32, cropped if for training, normalised.
        indices: which frames they are, counted from 0, rising.
        seconds: when they are shown: index / fps, rounded to 0.1 s.
        fps: average frames per second of the video.
        num_frames_total: frames of the whole video.
        duration: of the whole video, in seconds.
    """

    frames: Tensor
    pixel_values: Tensor
    indices: list[int]
    seconds: list[float]
    fps: float
    num_frames_total: int
    duration: float


class FrameOptions(PictureOptions, Protocol):
    """What `VideoProcessor` reads of its settings; `settings.VideoSettings` provides it."""

    n_frms: int
    fps: float | None
    start: float
    end: float | None


class VideoProcessor:
    """`alpro_video_train` (one random crop for all frames) and `alpro_video_eval` of the original.

    Args:
        settings: frames, size and normalisation; the training settings ask for a random crop.
        sampling: `uniform`, `headtail` or `fps`.
    """

    def __init__(self, settings: FrameOptions, *, sampling: str = "uniform") -> None:
        self.settings = settings
        self.sampling = sampling

    def __call__(self, path: str | Path, *, generator: torch.Generator | None = None) -> VideoClip:
        """Decodes and transforms the frames that the settings ask for.

        Args:
            path: a video file.
            generator: source of random frames and of the random crop; needed for those only.

        Raises:
            MediaError: the file is no video that can be read, or ends before `start`.
            ValueError: something random is asked for and there is no generator.
        """
        size = self.settings.image_size
        choose = partial(self.choose, path=path, generator=generator)
        reader, indices, pictures = read_frames(path, choose, height=size, width=size)
        frames = torch.from_numpy(pictures.transpose(3, 0, 1, 2).copy())
        fps = _usable(reader.fps)
        return VideoClip(
            frames=frames,
            pixel_values=self.transform(frames, generator=generator),
            indices=indices,
            seconds=[round(index / fps, 1) for index in indices],
            fps=fps,
            num_frames_total=reader.num_frames,
            duration=reader.num_frames / fps,
        )

    def choose(
        self,
        num_frames: int,
        fps: float,
        *,
        path: str | Path = "video",
        generator: torch.Generator | None = None,
    ) -> list[int]:
        """The indices of the frames to look at, at most `n_frms` and no frame twice.

        Args:
            num_frames: frames of the video.
            fps: frames per second of the video.
            path: for the message of an error.
            generator: needed for `headtail`.

        Raises:
            MediaError: the video ends before `start`.
            ValueError: `headtail` is asked for and there is no generator.
        """
        s, fps = self.settings, _usable(fps)
        try:
            window = frame_window(num_frames, fps, start=s.start, end=s.end)
        except ValueError as error:
            raise MediaError(path, str(error)) from error
        if self.sampling == "headtail":
            return headtail(window, s.n_frms, require_generator(generator, "sampling: headtail"))
        if self.sampling == "fps" and s.fps is not None:
            return at_rate(window, s.n_frms, fps=fps, rate=s.fps)
        return uniform(window, s.n_frms)

    def transform(self, frames: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Crops (for training) and normalises frames.

        Args:
            frames: (3, T, H, W) uint8; H = W = size unless they are to be cropped.
            generator: source of the random crop; needed for training only.

        Returns:
            (3, T, size, size) float32.
        """
        s = self.settings
        if (scale := s.crop_scale) is not None:
            random = require_generator(generator, s.name)
            height, width = frames.shape[-2:]
            box = random_crop_box(height, width, scale=scale, generator=random)
            frames = crop_and_resize(frames, box, s.image_size)
        return normalise(frames, mean=s.mean, std=s.std)


def _usable(fps: float) -> float:
    """The frame rate; 1 where the file states none, so that frames still have an order in time."""
    return fps if math.isfinite(fps) and fps > 0 else 1.0
