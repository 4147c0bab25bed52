"""Packing, which must train batch for batch as the files do."""

from __future__ import annotations

import struct
import tarfile
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch

from tests.data_sets import (
    NUM_CLIPS,
    entry,
    info_of,
    same,
    train_batches,
    write_clip_with_bad_sound,
    write_json,
    write_table,
)
from tests.media import set_rotation, tone, write_audio, write_picture, write_video
from video_llama.datasets.base import BuildInfo
from video_llama.datasets.loading import fingerprint, read_records
from video_llama.datasets.prepare import pack as packing
from video_llama.datasets.prepare.pack import PackReport, downscale, pack
from video_llama.datasets.records import Records
from video_llama.processors.media import probe
from video_llama.processors.video_reader import Reading, read_frames
from video_llama.processors.waveform import open_sound
from video_llama.types import Batch, CaptionBatch, ConfigError, MediaError

FAMILIES = ("webvid", "cc_sbu_align", "llava_instruct", "webvid_instruct", "audio_caption")


def records_of(name: str, info: BuildInfo) -> Records:
    return read_records(entry(name, info), info)


def packed(name: str, info: BuildInfo, folder: Path, **keys: Any) -> PackReport:
    keys = {"samples_per_shard": 5, **keys}
    return pack(name, records_of(name, info), folder, **keys)


def epochs(name: str, info: BuildInfo) -> list[Batch]:
    batches = train_batches({name: entry(name, info)})
    return [batches[step] for step in range(10)]


def frame_times(path: Path) -> list[float]:
    with av.open(str(path)) as container:
        return [frame.time or 0.0 for frame in container.decode(video=0)]


@pytest.mark.parametrize("name", FAMILIES)
def test_tars_train_batch_for_batch_as_the_files_do(data: Path, tmp_path: Path, name: str) -> None:
    info = info_of(name, data)
    report = packed(name, info, tmp_path)
    assert not report.failed
    files, tars = epochs(name, info), epochs(name, BuildInfo(storage=report.storage))
    assert all(map(same, files, tars))
    tables, shards = records_of(name, info), records_of(name, BuildInfo(storage=report.storage))
    assert fingerprint(tables) == fingerprint(shards)


def test_what_cannot_be_packed_keeps_its_place(data: Path, tmp_path: Path) -> None:
    rows = [("videoid", "page_dir", "name"), *((i, "p", f"Clip {i}") for i in range(NUM_CLIPS + 2))]
    table = write_table(tmp_path / "a.csv", rows)
    info = BuildInfo(anno_dir=str(table), videos_dir=str(data / "clips"))
    report = packed("webvid", info, tmp_path / "out")
    reason = "there is no such file"
    assert report.failed == (("p/12.mp4", reason), ("p/13.mp4", reason))
    files, tars = epochs("webvid", info), epochs("webvid", BuildInfo(storage=report.storage))
    for one, other in zip(files, tars, strict=True):
        assert isinstance(one, CaptionBatch)
        assert isinstance(other, CaptionBatch)
        assert one.item_ids == other.item_ids
        assert one.pixel_values is not None
        assert other.pixel_values is not None
        assert torch.equal(one.pixel_values, other.pixel_values)
        bad = [[(item.item_id, item.reason) for item in b.bad_items] for b in (one, other)]
        assert bad[0] == bad[1]


def test_packing_goes_on_where_it_stopped(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    info = info_of("webvid", data)
    whole = packed("webvid", info, tmp_path / "whole")
    real, seen = packing._media, []

    def break_off(record: Any, size: int | None) -> tuple[bytes, str]:
        seen.append(record.item_id)
        if len(seen) > 7:
            raise KeyboardInterrupt
        return real(record, size)

    monkeypatch.setattr(packing, "_media", break_off)
    folder = tmp_path / "out"
    with pytest.raises(KeyboardInterrupt):
        packed("webvid", info, folder)
    assert sorted(p.name for p in folder.iterdir()) == [
        *("pack.json", "webvid-000000.tar", "webvid-000000.tar.index")
    ]
    monkeypatch.undo()
    (folder / ".webvid-000001.tar.99.tmp").write_text("left by a process that was killed")
    (folder / "webvid-000000.tar.index").unlink()
    steps: list[tuple[int, int]] = []
    report = packed(
        "webvid", info, folder, progress=lambda done, total: steps.append((done, total))
    )
    assert (report.num_written, report.num_shards) == (2, 3)
    assert steps == [(2, 3), (3, 3)]
    for path in (tmp_path / "whole").glob("*.tar*"):
        assert (folder / path.name).read_bytes() == path.read_bytes()
    assert len(list(folder.iterdir())) == len(list((tmp_path / "whole").iterdir()))
    assert packed("webvid", info, folder).num_written == 0
    assert whole.storage.endswith("/webvid-{000000..000002}.tar")


def test_processes_write_the_same_tars(data: Path, tmp_path: Path) -> None:
    info = info_of("webvid", data)
    packed("webvid", info, tmp_path / "one")
    packed("webvid", info, tmp_path / "two", num_workers=2)
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_folder_holds_one_packing_only(data: Path, tmp_path: Path) -> None:
    info = info_of("webvid", data)
    packed("webvid", info, tmp_path)
    with pytest.raises(ConfigError, match="samples_per_shard 5, but samples_per_shard 4 was asked"):
        packed("webvid", info, tmp_path, samples_per_shard=4)
    with pytest.raises(ConfigError, match="size None, but size 16 was asked"):
        packed("webvid", info, tmp_path, size=16)
    other = BuildInfo(anno_dir=str(data / "webvid/0.csv"), videos_dir=info.videos_dir)
    with pytest.raises(ConfigError, match="num_items 12"):
        packed("webvid", other, tmp_path)


@pytest.mark.parametrize("content", [b"xx", b"[]", b"[" * 100_000, b"\xff"])
def test_a_damaged_plan_is_an_error_that_says_what_to_do(
    data: Path, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "pack.json").write_bytes(content)
    with pytest.raises(ConfigError, match=r"pack\.json is damaged: delete it to pack anew"):
        packed("webvid", info_of("webvid", data), tmp_path)


def test_odd_suffixes_are_packed_too(tmp_path: Path) -> None:
    sounds = []
    for name in ("a", "b.json", "c.d.WAV", "\u72d7.\u72d7"):
        write_audio(tmp_path / "x.wav", tone(0.3)).rename(tmp_path / name)
        sounds.append({"audio": name, "caption": name})
    path = write_json(tmp_path / "sounds.list.json", sounds)
    info = BuildInfo(anno_dir=str(path), videos_dir=str(tmp_path))
    report = packed("audio_caption", info, tmp_path / "out")
    assert report.storage.endswith("audio_caption-000000.tar")
    files = epochs("audio_caption", info)
    assert all(map(same, files, epochs("audio_caption", BuildInfo(storage=report.storage))))


def test_shrunk_tars_train_on_nearly_the_same_frames(data: Path, tmp_path: Path) -> None:
    info = info_of("webvid", data)
    report = packed("webvid", info, tmp_path, size=24)
    files, tars = epochs("webvid", info), epochs("webvid", BuildInfo(storage=report.storage))
    for one, other in zip(files, tars, strict=True):
        assert one.item_ids == other.item_ids
        assert one.pixel_values is not None
        assert other.pixel_values is not None
        assert float((one.pixel_values - other.pixel_values).abs().mean()) < 0.1


def test_a_shrunk_clip_keeps_frames_times_sound_and_shape(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.3, 0.7, 0.8, 1.2]
    source = write_video(
        tmp_path / "a.mp4", width=120, height=80, num_frames=6, times=times, sound=tone(1.2)
    )
    content, suffix = downscale(source, 40)
    small = tmp_path / f"small.{suffix}"
    small.write_bytes(content)
    before, after = probe(source), probe(small)
    assert (after.width, after.height) == (60, 40)
    assert after.num_frames == before.num_frames == 6
    assert after.audio_codec == "aac"
    assert frame_times(small) == pytest.approx(frame_times(source), abs=0.002)
    before_pixels, after_pixels = (all_frames(p).frames for p in (source, small))
    assert abs(before_pixels.astype(int) - after_pixels).mean() < 4


def all_frames(path: Path) -> Reading:
    return read_frames(path, lambda t: range(len(t.seconds)), height=40, width=60)


def mirror(path: Path, width: int) -> Path:
    """Show an mp4 mirrored, by the matrix of its first track."""
    content = bytearray(path.read_bytes())
    matrix = content.index(b"tkhd") + 4 + 40
    struct.pack_into(">i", content, matrix, -(1 << 16))
    struct.pack_into(">i", content, matrix + 24, width << 16)
    path.write_bytes(content)
    return path


def delay(path: Path, kind: str) -> Path:
    """Let the frames or the sound of a clip begin a second later."""
    moved = path.with_name(f"{kind}-{path.name}")
    with av.open(str(path)) as source, av.open(str(moved), "w") as target:
        copies = {s.index: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is not None:
                ticks = round(1 / packet.time_base) if packet.stream.type == kind else 0
                packet.pts, packet.dts = packet.pts + ticks, packet.dts + ticks
                packet.stream = copies[packet.stream_index]
                target.mux(packet)
    return moved


UNEVEN = [round(0.04 * n + 0.015 * (n % 3), 3) for n in range(40)]
CLIPS: dict[str, dict[str, Any]] = {
    "b-frames.avi": {"codec": "mpeg4", "codec_options": {"bf": "2"}},
    "no-times.avi": {},
    "hidden.webm": {"codec": "libvpx", "codec_options": {"auto-alt-ref": "1"}},
    "refresh.mp4": {"codec_options": {"x264-params": "intra-refresh=1:bframes=0"}},
    "stream.ts": {"sound": tone(5.0)},
    "uneven.mkv": {"times": UNEVEN, "sound": tone(2.0)},
    "pauses.gif": {"codec": "gif", "pix_fmt": "rgb8"},
    "turned.mp4": {},
    "mirrored.mp4": {},
    "video-late.mp4": {"sound": tone(5.0)},
    "audio-late.mp4": {"sound": tone(5.0)},
}


@pytest.mark.parametrize("name", CLIPS)
def test_training_reads_the_same_frames_and_times_from_a_smaller_clip(
    tmp_path: Path, name: str
) -> None:
    clip = write_video(tmp_path / name, width=96, height=64, num_frames=40, **CLIPS[name])
    if name == "turned.mp4":
        set_rotation(clip, 90)
    if name == "mirrored.mp4":
        mirror(clip, 96)
    if name.endswith("-late.mp4"):
        clip = delay(clip, name.split("-")[0])
    content, suffix = downscale(clip, 40)
    small = tmp_path / f"small.{suffix}"
    small.write_bytes(content)
    before, after = all_frames(clip), all_frames(small)
    assert after.timeline.seconds == pytest.approx(before.timeline.seconds, abs=0.002)
    assert abs(before.frames.astype(int) - after.frames).mean(axis=(1, 2, 3)).max() < 8
    sounds = [open_sound(path) for path in (clip, small) if probe(path).audio_codec]
    lengths = [sound.num_samples / sound.rate for sound in sounds]
    assert lengths == pytest.approx(lengths[:1] * 2, abs=0.03)


def test_a_phone_clip_is_turned_upright(tmp_path: Path) -> None:
    source = set_rotation(write_video(tmp_path / "a.mp4", width=96, height=48), 90)
    small = tmp_path / "small.mp4"
    small.write_bytes(downscale(source, 32)[0])
    info = probe(small)
    assert (info.width, info.height) == (32, 64)
    frames = [read_frames(p, lambda _: [0], height=64, width=32).frames for p in (source, small)]
    assert abs(frames[0].astype(int) - frames[1]).mean() < 6


def test_pictures_and_sounds_are_shrunk_as_far_as_they_can_be(tmp_path: Path) -> None:
    content, suffix = downscale(write_picture(tmp_path / "a.png", 90, 60), 30)
    path = tmp_path / f"b.{suffix}"
    path.write_bytes(content)
    info = probe(path)
    assert (suffix, info.width, info.height) == ("jpg", 45, 30)
    sound = write_audio(tmp_path / "c.wav", tone(0.2))
    assert downscale(sound, 30) == (sound.read_bytes(), "wav")
    with pytest.raises(MediaError, match="no such file"):
        downscale(tmp_path / "missing.mp4", 30)


def test_small_clips_are_not_enlarged(tmp_path: Path) -> None:
    path = tmp_path / "b.mp4"
    path.write_bytes(downscale(write_video(tmp_path / "a.mp4", width=36, height=50), 224)[0])
    assert (probe(path).width, probe(path).height) == (36, 50)


def test_tars_hold_nothing_of_the_machine(data: Path, tmp_path: Path) -> None:
    packed("webvid", info_of("webvid", data), tmp_path)
    with tarfile.open(tmp_path / "webvid-000000.tar") as tar:
        members = tar.getmembers()
    assert {(m.mtime, m.uname, m.gname) for m in members} == {(0, "", "")}
    assert [m.name for m in members[:2]] == ["000000000.json", "000000000.mp4"]


def write_noisy_clip(path: Path, width: int, height: int, *, num_frames: int = 50) -> Path:
    """A clip in which everything moves, as in films: a plain one is encoded alike by chance."""
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        noise = np.random.default_rng(0).integers(0, 256, (height * 2, width * 2), np.uint8)
        for number in range(num_frames):
            picture = noise[number : number + height, 2 * number : 2 * number + width]
            picture = np.stack([picture, picture[::-1], picture], axis=2)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.mark.parametrize(("width", "height"), [(300, 168), (168, 300)])
def test_a_clip_is_made_smaller_in_the_same_way_every_time(
    tmp_path: Path, width: int, height: int
) -> None:
    """x264 let memory that it never wrote decide, where a width is no multiple of 16."""
    clip = write_noisy_clip(tmp_path / "a.mp4", width, height)
    first = downscale(clip, 112)
    for number in range(5):
        keep = np.full(1 << (12 + number), number, np.uint8)  # other memory is free each time
        assert downscale(clip, 112) == first, keep.size


def test_processes_write_the_same_smaller_tars(data: Path, tmp_path: Path) -> None:
    info = info_of("webvid", data)
    for name, workers in (("one", 0), ("two", 2)):
        packed("webvid", info, tmp_path / name, size=24, num_workers=workers)
    for path in (tmp_path / "one").iterdir():
        assert (tmp_path / "two" / path.name).read_bytes() == path.read_bytes(), path.name


@pytest.mark.parametrize("damage", ["bytes", "mute", "short"])
def test_a_bad_sound_track_does_not_keep_frames_from_being_packed(
    tmp_path: Path, damage: str
) -> None:
    clip = write_clip_with_bad_sound(tmp_path / "a.mp4", damage)
    small = tmp_path / "small.mp4"
    small.write_bytes(downscale(clip, 24)[0])
    assert probe(small).num_frames == probe(clip).num_frames == 16
    write_table(tmp_path / "a.csv", [("videoid", "page_dir", "name"), ("a", "", "x")])
    info = BuildInfo(anno_dir=str(tmp_path / "a.csv"), videos_dir=str(tmp_path))
    batch = train_batches({"webvid": entry("webvid", info)}, batch_size=1)[0]
    assert not batch.bad_items, "training uses the frames only"


@pytest.mark.parametrize("folder", ["caf\udce9", "x"])
def test_a_folder_whose_name_is_not_utf_8_is_packed(tmp_path: Path, folder: str) -> None:
    media = tmp_path / folder
    media.mkdir()
    write_audio(media / "a.wav", tone(0.2))
    sounds = [{"audio": "a.wav", "caption": "a"}, {"audio": "../b.wav", "caption": "b"}]
    path = write_json(tmp_path / "sounds.json", sounds)
    info = BuildInfo(anno_dir=str(path), videos_dir=str(media))
    report = packed("audio_caption", info, tmp_path / "out")
    assert [item for item, _ in report.failed] == ["../b.wav"]
