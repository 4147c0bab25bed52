"""Turn a video file into the clip that the model takes: chosen frames, cropped and normalised."""

from __future__ import annotations

from dataclasses import dataclass
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
from video_llama.processors.sampling import Timeline, at_rate, frame_window, headtail, uniform
from video_llama.processors.video_reader import read_frames
from video_llama.types import MediaError


@dataclass(frozen=True, kw_only=True, eq=False)
class VideoClip:
    """Frames of a video, T of them.

    Attributes:
        frames: (3, T, size, size) uint8, RGB, the whole picture.
        pixel_values: (3, T, size, size) float32, cropped if for training, normalised.
        indices: which frames they are, counted from 0, rising.
        seconds: when they are shown, from the start of the file's presentation, rounded to 0.1 s.
        fps: average frames per second of the video.
        num_frames_total: frames of the whole video.
        duration: from the start of the first to the end of the last frame, in seconds.
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
        """Decode and transform the frames that the settings ask for.

        Args:
            generator: source of random frames and of the random crop; needed for those only.

        Raises:
            MediaError: the file is no video that can be read, or ends before `start`.
            ValueError: something random is asked for and there is no generator.
        """
        size = self.settings.image_size
        state = generator.get_state() if generator is not None else None

        def choose(timeline: Timeline) -> list[int]:
            # A reader may ask again when it knows more; the random choice must be the same then.
            if generator is not None and state is not None:
                generator.set_state(state)
            return self.choose(timeline, path=path, generator=generator)

        reading = read_frames(path, choose, height=size, width=size)
        # The model takes colours first. A copy, so that each colour lies in one piece.
        frames = torch.from_numpy(reading.frames.transpose(3, 0, 1, 2).copy())
        timeline = reading.timeline
        return VideoClip(
            frames=frames,
            pixel_values=self.transform(frames, generator=generator),
            indices=reading.indices,
            seconds=[round(timeline.seconds[index], 1) for index in reading.indices],
            fps=timeline.fps,
            num_frames_total=len(timeline.seconds),
            duration=timeline.duration,
        )

    def choose(
        self,
        timeline: Timeline,
        *,
        path: str | Path = "video",
        generator: torch.Generator | None = None,
    ) -> list[int]:
        """Return the indices of the frames to look at, at most `n_frms` and no frame twice.

        Args:
            generator: needed for `headtail`.

        Raises:
            MediaError: the video ends before `start`.
            ValueError: `headtail` is asked for and there is no generator.
        """
        s = self.settings
        try:
            window = frame_window(timeline, start=s.start, end=s.end)
        except ValueError as error:
            raise MediaError(path, str(error)) from error
        if self.sampling == "headtail":
            return headtail(window, s.n_frms, require_generator(generator, "sampling: headtail"))
        # `fps` is set when the sampling asks for it; the settings check that.
        if self.sampling == "fps" and s.fps is not None:
            return at_rate(timeline, window, s.n_frms, rate=s.fps)
        return uniform(window, s.n_frms)

    def transform(self, frames: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
        """Crop (for training) and normalise frames.

        Args:
            frames: (3, T, H, W) uint8; H = W = size unless they are to be cropped.
            generator: source of the random crop; needed for training only.

        Returns:
            (3, T, size, size) float32.
        """
        s = self.settings
        if (scale := s.crop_scale) is not None:
            random = require_generator(generator, s.name)
            # One box for all frames: a crop that jumps about would look like motion.
            height, width = frames.shape[-2:]
            box = random_crop_box(height, width, scale=scale, generator=random)
            frames = crop_and_resize(frames, box, s.image_size)
        return normalise(frames, mean=s.mean, std=s.std)
