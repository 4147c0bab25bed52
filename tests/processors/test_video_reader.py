"""The right frames, the right way up, from every kind of video, with both readers."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import media
from tests.clips import assert_numbered, assert_right_frames, load, numbers
from video_llama.processors import video_reader as readers
from video_llama.processors.packets import data_packets
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


B_FRAMES = {"x264-params": "bframes=8:b-adapt=0:b-pyramid=normal"}


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_seek_ends_at_the_group_of_the_frame(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / name
    media.write_video(path, num_frames=100, keyframe_every=20, codec_options=B_FRAMES)
    reader = PyAvReader(path, height=16, width=16)
    packets: list[object] = []

    def count(*args: Any) -> Iterator[Any]:
        for packet in data_packets(*args):
            packets.append(packet)
            yield packet

    monkeypatch.setattr(readers, "data_packets", count)
    assert reader.skim([81]) is not None
    assert len(packets) < 20


def test_the_two_readers_agree(tmp_path: Path) -> None:
    if (decord := readers.decord_module()) is None:
        pytest.skip("there is no decord for this machine")
    path = media.write_video(tmp_path / "a.mp4", width=90, height=70)
    reader = PyAvReader(path, height=32, width=64)
    assert decord.VideoReader(str(path)).get_avg_fps() == reader.fps
    frames = readers.read_by_decord(path, reader.num_frames, [0, 5, 15], height=32, width=64)
    assert np.array_equal(frames, reader.read([0, 5, 15]))
    with pytest.raises(readers.DecordError, match="counts 16 frames of 17"):
        readers.read_by_decord(path, 17, [0], height=32, width=64)


def test_a_size_that_decord_cannot_hand_over_is_read_by_pyav(tmp_path: Path) -> None:
    processor = VideoEvalSettings(image_size=48).build()  # decord pads such rows and then stumbles
    assert processor(media.write_video(tmp_path / "a.mp4")).frames.shape == (3, 8, 48, 48)


def test_what_decord_fails_on_is_read_by_pyav(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: object, **kwargs: object) -> None:
        raise readers.DecordError("a.mp4", "decord cannot decode its frames")

    monkeypatch.setattr(readers, "read_by_decord", fail)
    assert_right_frames(load(media.write_video(tmp_path / "a.webm", codec="libvpx-vp9")))


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
            decord = readers.read_by_decord(path, 60, indices, height=32, width=64)
            assert np.array_equal(skimmed, decord)


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

    monkeypatch.setattr(readers, "read_by_decord", forbidden)
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


STEADY = [i / 25 for i in range(100)]


@pytest.mark.parametrize("name", ["a.avi", "a.mp4", "a.mkv", "a.mov", "a.3gp"])
@pytest.mark.parametrize(("b_frames", "gop"), [(0, 12), (1, 100), (2, 12)])
def test_frames_of_mpeg4_are_right_with_b_frames(
    reader: str, tmp_path: Path, name: str, b_frames: int, gop: int
) -> None:
    made = {"codec": "mpeg4", "b_frames": b_frames, "gop": gop}
    clip = assert_numbered(media.write_numbered(tmp_path / name, STEADY, **made), 100)
    assert clip.seconds == [round(index / 25, 1) for index in clip.indices]


def test_an_avi_with_packed_b_frames_is_read(reader: str, tmp_path: Path) -> None:
    plain = media.write_numbered(tmp_path / "a.avi", STEADY, codec="mpeg4", b_frames=1, gop=25)
    clip = assert_numbered(media.pack_b_pictures(plain, tmp_path / "b.avi"), 100, n_frms=11)
    assert clip.seconds == [round(index / 25, 1) for index in clip.indices]


@pytest.mark.parametrize("name", ["a.avi", "a.mp4", "a.mkv"])
def test_pictures_that_are_not_coded_are_no_frames(reader: str, tmp_path: Path, name: str) -> None:
    plain = media.write_numbered(tmp_path / "plain.mp4", STEADY, codec="mpeg4", b_frames=0)
    empty = [7, 8, 30, 77]
    clip = assert_numbered(media.insert_empty_vops(plain, tmp_path / name, empty), 100, n_frms=32)
    coded = [slot for slot in range(104) if slot not in empty]
    assert clip.seconds == [round(coded[i] / 25, 1) for i in clip.indices]


@pytest.mark.parametrize(
    "made",
    [
        {"options": {"x264-params": "keyint=30:min-keyint=30:scenecut=0:bframes=2"}},
        {"options": {"x264-params": "keyint=30:intra-refresh=1:bframes=0"}},
        {"codec": "mpeg2video", "b_frames": 2, "gop": 15},
        {"codec": "libx265", "options": {"x265-params": "keyint=30:min-keyint=30:log-level=none"}},
    ],
    ids=["H.264", "intra refresh", "MPEG-2", "HEVC"],
)
def test_a_stream_cut_between_key_frames_starts_at_the_first_whole_frame(
    reader: str, tmp_path: Path, made: dict[str, Any]
) -> None:
    path = media.write_numbered(tmp_path / "a.ts", STEADY, **made)
    clip = load(media.cut_transport_stream(path, 0.15), image_size=160)
    first = 100 - clip.num_frames_total
    assert 5 <= first <= 60
    assert numbers(clip) == [first + index for index in clip.indices]
    assert clip.seconds == [round(index / 25, 1) for index in clip.indices]


_ONE = 1 << 16


@pytest.mark.parametrize(
    ("name", "codec"),
    [("a.mp4", "libx264"), ("a.mov", "mjpeg"), ("a.mov", "mpeg4"), ("a.mp4", "libvpx-vp9")],
)
@pytest.mark.parametrize(
    ("signs", "corners"),
    [
        ((1, 0, 0, 1), "RBGY"),
        ((-1, 0, 0, 1), "BRYG"),
        ((1, 0, 0, -1), "GYRB"),
        ((-1, 0, 0, -1), "YGBR"),
        ((0, 1, -1, 0), "GRYB"),
        ((0, -1, 1, 0), "BYRG"),
        ((0, 1, 1, 0), "RGBY"),
        ((0, -1, -1, 0), "YBGR"),
    ],
)
def test_every_display_matrix_is_obeyed(
    reader: str,
    tmp_path: Path,
    name: str,
    codec: str,
    signs: tuple[int, int, int, int],
    corners: str,
) -> None:
    a, b, c, d = (sign * _ONE for sign in signs)
    matrix = (a, b, 0, c, d, 0, 0, 0, 1 << 30)
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = media.write_numbered(
        tmp_path / name, STEADY[:10], codec=codec, pix_fmt=pix_fmt, matrix=matrix
    )
    clip = load(path, image_size=64, n_frms=3)
    pictures = clip.frames.permute(1, 2, 3, 0).numpy()
    assert {media.read_corners(picture) for picture in pictures} == {corners}


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [
        ("VIDEO_PIXELS", "100000", "pixels have to be decoded, at most 100000 pixels"),
        ("FRAMES", "50", "its video track is too long, at most 50 frames"),
        ("FRAME_PIXELS", "5000", "too large, at most 5000 pixels"),
    ],
)
@pytest.mark.parametrize(
    ("name", "made"),
    [("a.mp4", {}), ("a.avi", {"codec": "mpeg4", "b_frames": 2}), ("a.gif", {"codec": "gif"})],
)
def test_what_costs_too_much_is_refused_before_it_is_decoded(
    reader: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
    made: dict[str, Any],
    limit: str,
    value: str,
    reason: str,
) -> None:
    pix_fmt = "rgb8" if name == "a.gif" else "yuv420p"
    path = media.write_numbered(tmp_path / name, STEADY, pix_fmt=pix_fmt, **made)
    monkeypatch.setenv(f"VIDEO_LLAMA_MAX_{limit}", value)
    with pytest.raises(MediaError, match=f"{reason}.*VIDEO_LLAMA_MAX_{limit} sets it"):
        load(path)


def test_reading_that_takes_too_long_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = media.write_numbered(tmp_path / "a.avi", STEADY, codec="mpeg4", b_frames=2)
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr("video_llama.processors.limits.time.monotonic", lambda: next(clock))
    with pytest.raises(MediaError, match=r"takes too long.*VIDEO_LLAMA_MAX_SECONDS sets it"):
        load(path)


def test_a_small_gif_of_huge_frames_is_refused_at_once(tmp_path: Path) -> None:
    path = media.write_gif_bomb(tmp_path / "a.gif", side=8192, num_frames=3000)
    assert path.stat().st_size < 100_000
    begin = time.monotonic()
    with pytest.raises(MediaError, match="VIDEO_LLAMA_MAX_VIDEO_PIXELS sets it"):
        load(path)
    assert time.monotonic() - begin < 20


def test_frames_that_grow_behind_the_header_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = media.write_growing(tmp_path / "a.mov", [64, 128, 256, 512, 1024])
    assert load(path).frames.shape[1] == 5
    monkeypatch.setenv("VIDEO_LLAMA_MAX_FRAME_PIXELS", "100000")
    with pytest.raises(MediaError):
        load(path)
