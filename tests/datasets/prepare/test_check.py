from __future__ import annotations

import errno
import io
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.data_sets import entry, info_of, write_clip_with_bad_sound, write_table
from tests.media import tone, truncate, write_video
from video_llama.datasets.base import BuildInfo
from video_llama.datasets.items import MediaLoader
from video_llama.datasets.loading import media_loader, read_records
from video_llama.datasets.prepare.check import CheckReport, check
from video_llama.datasets.prepare.workers import WorkerDiedError


def checked(name: str, info: BuildInfo, **keys: Any) -> CheckReport:
    settings = entry(name, info)
    return check(name, read_records(settings, info), media_loader(settings, split="train"), **keys)


@pytest.fixture
def clips(tmp_path: Path) -> BuildInfo:
    make: dict[str, dict[str, Any]] = {
        "good": {"sound": tone(1.0)},
        "mute": {},
        "silent": {"sound": np.zeros((1, 16000), np.float32)},
        "cut": {"sound": tone(1.0)},
    }
    for name, keys in make.items():
        write_video(tmp_path / f"{name}.mp4", width=32, height=32, **keys)
    truncate(tmp_path / "cut.mp4", 0.3)
    (tmp_path / "again.mp4").write_bytes((tmp_path / "good.mp4").read_bytes())
    names = ("again", "cut", "good", "gone", "mute", "silent")
    rows = [("videoid", "page_dir", "name"), *((name, "", f"a {name} clip") for name in names)]
    write_table(tmp_path / "a.csv", rows)
    return BuildInfo(anno_dir=str(tmp_path / "a.csv"), videos_dir=str(tmp_path))


@pytest.mark.parametrize("workers", [0, 2])
def test_every_kind_of_problem_is_found(clips: BuildInfo, workers: int) -> None:
    steps: list[tuple[int, int]] = []
    report = checked(
        "webvid",
        clips,
        num_workers=workers,
        progress=lambda done, total: steps.append((done, total)),
    )
    assert [(f.problem, f.item_id) for f in report.findings] == [
        ("missing", "gone.mp4"),
        ("corrupt", "cut.mp4"),
        ("duplicate", "good.mp4"),
        ("silent", "mute.mp4"),
        ("silent", "silent.mp4"),
    ]
    assert report.findings[2].reason == "the same content as again.mp4"
    assert report.findings[0].path.endswith("/gone.mp4")
    assert [report.count(p) for p in ("missing", "corrupt", "duplicate", "silent")] == [1, 1, 1, 2]
    assert not report.is_usable
    assert (report.num_items, report.num_checked, steps[-1]) == (6, 6, (6, 6))


def test_a_sample_is_checked_and_always_the_same_one(data: Path) -> None:
    info = info_of("webvid", data)
    one, again = (checked("webvid", info, sample=5) for _ in range(2))
    assert (one.num_items, one.num_checked) == (12, 5)
    assert one == again
    assert checked("webvid", info, sample=50).num_checked == 12


@pytest.mark.parametrize("name", ["cc_sbu_align", "llava_instruct", "audio_caption"])
def test_good_data_sets_have_no_findings_that_matter(data: Path, name: str) -> None:
    report = checked(name, info_of(name, data))
    assert report.is_usable
    assert not report.count("silent")
    assert not report.count("duplicate")


def test_conversations_about_one_file_are_no_duplicates(data: Path, tmp_path: Path) -> None:
    rows = [("audio", "caption"), ("0.wav", "a"), ("./0.wav", "b")]
    table = write_table(tmp_path / "a.csv", rows)
    info = BuildInfo(anno_dir=str(table), videos_dir=str(data / "sounds"))
    assert not checked("audio_caption", info).findings


def test_a_process_that_crashes_on_a_file_is_an_error(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(MediaLoader, "load", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(WorkerDiedError, match="or a codec crashed"):
        checked("webvid", info_of("webvid", data), num_workers=2)


def test_a_file_that_the_disk_does_not_give_is_corrupt(
    clips: BuildInfo, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = Path.open

    class FailingDisk(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            raise OSError(errno.EIO, "Input/output error")

    def fail(path: Path, *args: Any, **keys: Any) -> Any:
        return FailingDisk(path) if path.name == "mute.mp4" else opened(path, *args, **keys)

    monkeypatch.setattr(Path, "open", fail)
    found = {f.item_id: (f.problem, f.reason) for f in checked("webvid", clips).findings}
    assert found["mute.mp4"] == ("corrupt", "it cannot be read: input/output error")


@pytest.mark.parametrize("damage", ["bytes", "mute", "short"])
def test_a_clip_with_a_bad_sound_track_is_silent_and_not_corrupt(
    tmp_path: Path, damage: str
) -> None:
    write_clip_with_bad_sound(tmp_path / "a.mp4", damage)
    write_table(tmp_path / "a.csv", [("videoid", "page_dir", "name"), ("a", "", "x")])
    info = BuildInfo(anno_dir=str(tmp_path / "a.csv"), videos_dir=str(tmp_path))
    report = checked("webvid", info)
    assert report.is_usable
    assert {finding.problem for finding in report.findings} <= {"silent"}
