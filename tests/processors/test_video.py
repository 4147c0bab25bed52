"""Clips: which frames they hold, when these are shown, and what is made of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from tests import media
from tests.clips import assert_right_frames, load
from video_llama.processors.image import normalise
from video_llama.processors.settings import VideoEvalSettings, VideoTrainSettings
from video_llama.types import MediaError


def test_a_clip_describes_itself(reader: str, tmp_path: Path) -> None:
    clip = load(media.write_video(tmp_path / "a.mp4", num_frames=17, fps=10), n_frms=4)
    assert clip.frames.shape == clip.pixel_values.shape == (3, 4, 32, 32)
    assert (clip.frames.dtype, clip.pixel_values.dtype) == (torch.uint8, torch.float32)
    assert clip.indices == [0, 4, 8, 12]
    assert clip.seconds == [0.0, 0.4, 0.8, 1.2]
    assert (clip.fps, clip.num_frames_total) == (10.0, 17)
    assert clip.duration == pytest.approx(1.7)
    settings = VideoEvalSettings()
    expected = normalise(clip.frames, mean=settings.mean, std=settings.std)
    assert torch.equal(clip.pixel_values, expected)


def test_short_and_odd_videos_give_the_frames_they_have(reader: str, tmp_path: Path) -> None:
    one = load(media.write_video(tmp_path / "one.mp4", num_frames=1))
    assert (one.indices, one.seconds, one.frames.shape[1]) == ([0], [0.0], 1)
    three = load(media.write_video(tmp_path / "three.mp4", num_frames=3))
    assert three.indices == [0, 1, 2]
    assert_right_frames(three)
    for width, height in ((1, 1), (35, 51), (2, 300)):
        path = tmp_path / f"{width}.mkv"
        media.write_video(path, width=width, height=height, codec="ffv1", pix_fmt="bgr0")
        assert_right_frames(load(path), tolerance=6)


def test_a_variable_frame_rate_counts_frames(reader: str, tmp_path: Path) -> None:
    times = [0, 0.1, 0.2, 0.5, 0.9, 1.0, 1.1, 1.9]
    clip = load(media.write_video(tmp_path / "a.mp4", times=times, num_frames=8), n_frms=4)
    assert clip.indices == [0, 2, 4, 6]
    assert_right_frames(clip)


def test_making_av1_does_not_put_the_tests_before_all_other_processes(tmp_path: Path) -> None:
    before = os.sched_getscheduler(0)
    media.write_video(tmp_path / "a.mp4", codec=media.AV1)
    assert os.sched_getscheduler(0) == before


def test_the_window_limits_the_frames(reader: str, tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "a.mp4", num_frames=40, fps=10)
    clip = load(path, n_frms=4, start=1.0, end=3.0)
    assert clip.indices == [10, 15, 20, 25]
    assert clip.seconds == [1.0, 1.5, 2.0, 2.5]
    assert_right_frames(clip)
    with pytest.raises(MediaError, match=r"from 9 s is empty, it lasts 4 s") as error:
        load(path, start=9.0)
    assert error.value.path == path


def test_frames_per_second_can_be_asked_for(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "a.mp4", num_frames=40, fps=10)
    assert load(path, sampling="fps", fps=2.0).indices == [0, 5, 10, 15, 20, 25, 30, 35]
    assert load(path, sampling="fps", fps=1.0).indices == [0, 10, 20, 30]


def test_training_repeats_with_the_seed(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "a.mp4", num_frames=60)
    processor = VideoTrainSettings(image_size=32, sampling="headtail").build()
    clips = [processor(path, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert clips[0].indices == clips[1].indices != clips[2].indices
    assert torch.equal(clips[0].pixel_values, clips[1].pixel_values)
    assert clips[0].pixel_values.shape == (3, 8, 32, 32)
    assert sum(index < 30 for index in clips[0].indices) == 4
    with pytest.raises(ValueError, match="got no generator"):
        processor(path)
