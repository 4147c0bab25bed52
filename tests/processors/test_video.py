"""Clips: which frames they hold, when these are shown, and what is made of them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import media
from tests.clips import assert_numbered, assert_right_frames, load
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


SLIDES = [0.0, 0.04, 0.08, 3.0, 3.04, 7.0, 7.04, 7.08, 20.0, 20.04]
"""Times of frames with long pauses, all on the grid of 25 frames a second."""


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("a.mp4", {}),
        ("a.mkv", {"ticks": 1000}),
        ("a.webm", {"codec": "libvpx", "ticks": 1000}),
        ("a.ts", {}),
        ("a.flv", {"codec": "flv", "ticks": 1000}),
        ("a.gif", {"codec": "gif", "pix_fmt": "rgb8"}),
        ("a.avi", {"codec": "mjpeg", "pix_fmt": "yuvj420p"}),
        ("a.avi", {"codec": "mpeg4", "b_frames": 2}),
        ("a.mov", {"codec": "mpeg4", "b_frames": 2}),
    ],
)
def test_seconds_are_those_at_which_players_show_the_frames(
    reader: str, tmp_path: Path, name: str, made: dict[str, Any]
) -> None:
    path = media.write_numbered(tmp_path / name, SLIDES, **made)
    clip = assert_numbered(path, 10, n_frms=10)
    assert clip.seconds == [round(time, 1) for time in SLIDES]
    assert clip.duration == pytest.approx(20.1, abs=0.5)
    assert assert_numbered(path, 10, start=3.02, end=7.05, n_frms=9).indices == [4, 5, 6]
    assert assert_numbered(path, 10, sampling="fps", fps=0.2, n_frms=9).indices == [0, 4, 7, 8]
    with pytest.raises(MediaError, match=r"the part from 30 s is empty, it lasts 20"):
        load(path, start=30.0)


def test_a_recording_of_a_browser_has_no_rate_but_times(reader: str, tmp_path: Path) -> None:
    steps = np.clip(np.random.default_rng(0).normal(0.033, 0.008, 119), 0.01, 0.1)
    times = [0.0, *np.cumsum(steps).tolist()]
    path = media.write_numbered(
        tmp_path / "a.webm", times, codec="libvpx", rate=1000, container={"live": "1"}
    )
    data = path.read_bytes()
    place = data.find(b"\x23\xe3\x83")  # the duration of a frame, which browsers do not write
    if place >= 0:
        length = data[place + 3] & 0x7F
        void = bytes([0xEC, 0x80 | (length + 2)]) + bytes(length + 2)
        path.write_bytes(data[:place] + void + data[place + len(void) :])
    clip = assert_numbered(path, 120)
    assert clip.seconds == [round(times[i], 1) for i in clip.indices]
    assert clip.fps == pytest.approx(119 / times[-1], rel=0.02)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
@pytest.mark.parametrize(("picture", "sound", "first"), [(0, 2, 0.0), (2, 0, 2.0), (0, 0, 0.0)])
def test_frames_are_timed_from_the_first_thing_that_is_shown_or_heard(
    reader: str, tmp_path: Path, name: str, picture: float, sound: float, first: float
) -> None:
    times = [picture + i / 25 for i in range(25)]
    heard = {"sound": media.tone(1, 48000), "sound_start": sound, "sound_rate": 48000}
    path = media.write_numbered(tmp_path / name, times, ticks=1000, **heard)  # type: ignore[arg-type]
    assert assert_numbered(path, 25, n_frms=5).seconds == [first + s / 5 for s in range(5)]


def test_the_random_choice_is_the_same_where_frames_are_counted_first(tmp_path: Path) -> None:
    steady = [i / 25 for i in range(50)]
    processor = VideoTrainSettings(image_size=32, sampling="headtail").build()
    made: dict[str, dict[str, Any]] = {
        "a.mp4": {},
        "a.avi": {"codec": "mpeg4", "b_frames": 2},
        "empty.avi": {"codec": "mpeg4", "b_frames": 0},
    }
    states, chosen = [], []
    for name, options in made.items():
        path = media.write_numbered(tmp_path / name, steady, **options)
        if name == "empty.avi":  # more packets than frames, so that the first guess is wrong
            path = media.insert_empty_vops(path, tmp_path / "b.avi", [5, 9])
        generator = torch.Generator().manual_seed(3)
        chosen.append(processor(path, generator=generator).indices)
        states.append(generator.get_state())
    assert chosen[0] == chosen[1] == chosen[2]
    assert torch.equal(states[0], states[2])
