"""The right frames, the right way up, from every kind of video, with both readers."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import media
from tests.clips import assert_right_frames, load
from video_llama.processors import video_reader as readers
from video_llama.processors.settings import VideoEvalSettings
from video_llama.processors.video_reader import PyAvReader
from video_llama.types import MediaError


@pytest.mark.parametrize(
    ("name", "codec", "pix_fmt"),
    [
        ("a.mp4", "libx264", "yuv420p"),
        ("a.mp4", "libx264", "yuv420p10le"),
        ("a.mp4", "libx265", "yuv420p"),
        ("a.mkv", "libx264", "yuv444p"),
        ("a.webm", "libvpx-vp9", "yuv420p"),
        ("a.mp4", media.AV1, "yuv420p"),
        ("a.avi", "mpeg4", "yuv420p"),
        ("a.mov", "mjpeg", "yuvj420p"),
        ("a.ts", "libx264", "yuv420p"),
        ("a.flv", "libx264", "yuv420p"),
    ],
)
def test_every_common_codec_gives_the_frames_asked_for(
    reader: str, tmp_path: Path, name: str, codec: str, pix_fmt: str
) -> None:
    path = media.write_video(
        tmp_path / name, codec=codec, pix_fmt=pix_fmt, width=96, height=64, num_frames=40
    )
    clip = load(path)
    assert clip.num_frames_total == 40
    assert clip.indices == [0, 5, 10, 15, 20, 25, 30, 35]
    assert_right_frames(clip)
    assert np.abs(clip.frames[:, 0, 4, 4].int().numpy() - (220, 30, 30)).max() <= 8


def test_mpeg_program_streams_are_read_right(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "a.mpg", codec="mpeg2video", num_frames=40, fps=25)
    assert_right_frames(load(path))


@pytest.mark.parametrize("degrees", [90, 180, 270])
def test_a_phone_clip_is_turned_upright(reader: str, tmp_path: Path, degrees: int) -> None:
    path = media.set_rotation(media.write_video(tmp_path / "a.mp4"), degrees)
    frames = load(path).frames
    # Clockwise by 90 degrees the red corner moves from the upper left to the upper right.
    row, column = {90: (4, 27), 180: (27, 27), 270: (27, 4)}[degrees]
    assert np.abs(frames[:, 0, row, column].int().numpy() - (220, 30, 30)).max() <= 10


def test_frames_far_apart_are_found_by_seeking(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "a.mp4", num_frames=100, keyframe_every=10)
    reader = PyAvReader(path, height=16, width=16)
    indices = [0, 9, 10, 55, 56, 99]
    found = [int(frame[13, 8, 0]) for frame in reader.read(indices)]
    wanted = [media.frame_level(index, 100) for index in indices]
    assert np.abs(np.subtract(found, wanted)).max() <= 4
    assert np.array_equal(reader.read([56]), reader.read(indices)[4:5])


def test_the_two_readers_agree(tmp_path: Path) -> None:
    if readers.decord_module() is None:
        pytest.skip("there is no decord for this machine")
    path = media.write_video(tmp_path / "a.mp4", width=90, height=70)
    both = [kind(path, height=32, width=64) for kind in (readers.DecordReader, PyAvReader)]
    assert both[0].num_frames == both[1].num_frames
    assert both[0].fps == both[1].fps
    first, second = (reader.read([0, 5, 15]) for reader in both)
    assert np.array_equal(first, second)


def test_a_size_that_decord_cannot_hand_over_is_read_by_pyav(tmp_path: Path) -> None:
    processor = VideoEvalSettings(image_size=48).build()  # decord pads such rows and then stumbles
    assert processor(media.write_video(tmp_path / "a.mp4")).frames.shape == (3, 8, 48, 48)


def test_what_decord_fails_on_is_read_by_pyav(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: object, indices: object) -> None:
        raise readers.DecordError("a.mp4", "decord cannot decode its frames")

    monkeypatch.setattr(readers.DecordReader, "read", fail)
    assert_right_frames(load(media.write_video(tmp_path / "a.webm", codec="libvpx-vp9")))


B_FRAMES = {"x264-params": "bframes=8:b-adapt=0:b-pyramid=normal"}


@pytest.mark.parametrize(
    "made",
    [
        {"codec_options": B_FRAMES},
        {"codec_options": {"x264-params": "bframes=0"}},
        {"codec_options": {"x264-params": "tff=1:bframes=3:b-adapt=0"}},
        {"codec_options": B_FRAMES, "times": [i * i / 500 for i in range(60)]},
        {"codec_options": B_FRAMES, "pix_fmt": "yuv420p10le"},
        {"codec_options": {"x264-params": "open-gop=1:keyint=20:bframes=4:b-adapt=0"}},
    ],
    ids=["B frames", "no B frames", "interlaced", "variable rate", "10 bit", "open groups"],
)
def test_passing_over_frames_changes_no_pixel(tmp_path: Path, made: dict[str, Any]) -> None:
    path = media.write_video(tmp_path / "a.mp4", num_frames=60, keyframe_every=25, **made)
    reader = PyAvReader(path, height=32, width=64)
    for indices in ([0, 7, 15, 22, 30, 37, 45, 52], [59], [24, 25, 26], list(range(60))):
        skimmed = reader.skim(indices)
        assert skimmed is not None
        assert np.array_equal(skimmed, reader.read(indices))
        if readers.decord_module() is not None and "open-gop" not in str(made):
            decord = readers.DecordReader(path, height=32, width=64)
            assert np.array_equal(skimmed, decord.read(indices))


def test_frames_that_no_frame_is_made_from_are_passed_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = media.write_video(tmp_path / "a.mp4", num_frames=60, codec_options=B_FRAMES)
    decoded: list[object] = []

    def count(*args: Any) -> Iterator[Any]:
        for frame in decode(*args):
            decoded.append(frame)
            yield frame

    decode = PyAvReader._decoded
    monkeypatch.setattr(PyAvReader, "_decoded", count)
    assert PyAvReader(path, height=32, width=64).skim([0, 29, 59]) is not None
    assert len(decoded) < 30


def test_only_decoders_that_can_pass_over_frames_are_asked_to(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "a.mp4", num_frames=60, codec="mpeg4", keyframe_every=20)
    assert PyAvReader(path, height=32, width=64).skim([30]) is None


def test_a_damaged_file_is_not_skimmed(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "a.mp4", num_frames=60, options={"movflags": "faststart"})
    media.corrupt(path, 0.6, 0.9)
    with pytest.raises(MediaError):
        readers.read_frames(path, lambda _: range(60), height=32, width=64)


@pytest.mark.parametrize("fraction", [0.5, 0.8])
def test_a_file_cut_short_is_told(reader: str, tmp_path: Path, fraction: float) -> None:
    options = {"movflags": "faststart"}  # the header comes first and promises everything
    path = tmp_path / "a.mp4"
    media.write_video(path, num_frames=80, width=160, height=120, options=options)
    media.truncate(path, fraction)
    with pytest.raises(MediaError, match="cut short"):
        load(path)


def test_damaged_contents_are_told_and_do_not_hang(reader: str, tmp_path: Path) -> None:
    options = {"movflags": "faststart"}
    path = tmp_path / "a.mp4"
    media.write_video(path, num_frames=80, width=160, height=120, options=options)
    media.corrupt(path, 0.5, 0.95)
    with pytest.raises(MediaError):
        load(path)


def test_a_header_that_promises_other_frames_does_not_reach_decord(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = media.write_video(tmp_path / "a.webm", codec="libvpx-vp9")
    prepare = PyAvReader.__init__

    def exaggerate(self: PyAvReader, *args: Any, **kwargs: Any) -> None:
        prepare(self, *args, **kwargs)
        self.promised_frames = 3_892_314_152  # decord would reserve memory and end the process

    def forbidden(*args: object, **kwargs: object) -> None:
        raise AssertionError("decord opened the file")

    monkeypatch.setattr(readers.DecordReader, "__init__", forbidden)
    if readers.decord_module() is not None:
        with pytest.raises(AssertionError, match="decord opened the file"):
            load(path)
    monkeypatch.setattr(PyAvReader, "__init__", exaggerate)
    assert_right_frames(load(path))


def test_a_broken_file_leaves_nothing_on_stderr(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = media.write_video(tmp_path / "a.mp4", options={"movflags": "faststart"})
    media.truncate(path, 0.6)
    capfd.readouterr()
    for broken in (path, *media.broken_files(tmp_path).values()):
        with pytest.raises(MediaError):
            load(broken)
    assert capfd.readouterr().err == ""
