"""Packets tell the frames that are shown and where a jump is exact, or that they cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import media
from tests.clips import assert_numbered, load, numbers
from video_llama.processors.limits import Budget
from video_llama.processors.media import open_container, require_video
from video_llama.processors.packets import PacketIndex

STEADY = [i / 25 for i in range(100)]

GROUPS = "keyint=20:min-keyint=20:scenecut=0:bframes=3:b-adapt=0"


def index_of(path: Path) -> PacketIndex:
    with open_container(path) as container:
        return PacketIndex(container, require_video(container, path), Budget(path))


def h264(path: Path, parameters: str, **more: Any) -> Path:
    return media.write_numbered(path, STEADY, options={"x264-params": parameters}, **more)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.flv", "a.ts", "a.mov"])
def test_every_idr_picture_of_h264_is_an_entry(tmp_path: Path, name: str) -> None:
    index = index_of(h264(tmp_path / name, GROUPS))
    assert (index.is_exact, index.all_shown, len(index.times)) == (True, True, 100)
    assert [index.times.index(entry.pts) for entry in index.entries] == [0, 20, 40, 60, 80]


@pytest.mark.parametrize("parameters", [GROUPS + ":open-gop=1", "keyint=20:intra-refresh=1"])
@pytest.mark.parametrize("name", ["a.mp4", "a.mkv", "a.ts"])
def test_other_key_frames_of_h264_are_no_entries(
    tmp_path: Path, name: str, parameters: str
) -> None:
    path = h264(tmp_path / name, parameters)
    index = index_of(path)
    assert (index.is_exact, len(index.entries)) == (True, 1)
    assert_numbered(path, 100)


def test_a_jump_in_hevc_starts_at_open_groups_too(tmp_path: Path) -> None:
    options = {"x265-params": "keyint=20:min-keyint=20:bframes=4:log-level=none:open-gop=1"}
    path = media.write_numbered(tmp_path / "a.mp4", STEADY, codec="libx265", options=options)
    index = index_of(path)
    assert (index.is_exact, len(index.times)) == (True, 100)
    assert len(index.entries) >= 5
    assert_numbered(path, 100)


def test_hidden_frames_in_packets_of_shown_ones_are_not_counted(tmp_path: Path) -> None:
    options = {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good", "cpu-used": "5"}
    path = media.write_numbered(
        tmp_path / "a.webm", STEADY, codec="libvpx-vp9", options=options, gop=50, ticks=1000
    )
    index = index_of(path)
    assert (index.is_exact, index.all_shown, len(index.times)) == (True, True, 100)
    assert_numbered(path, 100)


def test_hidden_frames_in_packets_of_their_own_are_not_counted(tmp_path: Path) -> None:
    path = media.write_numbered(tmp_path / "a.webm", STEADY, codec="libvpx", gop=30, ticks=1000)
    hidden = [3, 17, 45, 46, 61, 98]
    path = media.hide_vp8_frames(path, tmp_path / "b.webm", hidden)
    index = index_of(path)
    assert (index.is_exact, index.all_shown, len(index.times)) == (True, False, 94)
    shown = [number for number in range(100) if number not in hidden]
    clip = load(path, image_size=160, n_frms=24)
    assert numbers(clip) == [shown[i] for i in clip.indices]
    assert clip.seconds == [round(shown[i] / 25, 1) for i in clip.indices]


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("a.avi", {"codec": "mpeg4", "b_frames": 2}),
        ("a.mpg", {"codec": "mpeg2video", "b_frames": 2}),
        ("a.asf", {"codec": "libx264"}),
        ("a.asf", {"codec": "wmv2"}),
        ("a.mkv", {"codec": "mpeg2video", "b_frames": 2}),
    ],
)
def test_where_packets_do_not_tell_frames_are_counted(
    tmp_path: Path, name: str, made: dict[str, Any]
) -> None:
    path = media.write_numbered(tmp_path / name, STEADY, **made)
    assert not index_of(path).is_exact
    assert_numbered(path, 100)


def test_still_pictures_in_turn_are_all_entries(tmp_path: Path) -> None:
    path = media.write_numbered(tmp_path / "a.avi", STEADY, codec="mjpeg", pix_fmt="yuvj420p")
    index = index_of(path)
    assert (index.is_exact, len(index.entries)) == (True, 100)
    assert index.cost([0, 50, 99]) == 3


def test_the_cost_of_frames_counts_from_the_entries_before_them(tmp_path: Path) -> None:
    index = index_of(h264(tmp_path / "a.mp4", GROUPS))
    assert index.cost([0]) == 1
    assert index.cost([19, 21]) == 20 + 2
    assert index.cost([5, 10, 99]) == 11 + 20


def test_two_pictures_in_a_packet_and_empty_pictures_are_not_taken_for_frames(
    tmp_path: Path,
) -> None:
    plain = media.write_numbered(tmp_path / "a.mp4", STEADY, codec="mpeg4", b_frames=0, gop=12)
    assert index_of(plain).is_exact
    for name in ("b.mp4", "b.mkv"):
        holes = media.insert_empty_vops(plain, tmp_path / name, [30, 31, 57])
        assert not index_of(holes).is_exact
