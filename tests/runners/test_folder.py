from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.reference import ROOT
from video_llama.common.io import DiskFullError
from video_llama.runners.folder import (
    RunFolder,
    RunFolderError,
    describe_run,
    disk_errors,
    new_run_folder,
)
from video_llama.types import ConfigError


def test_runs_that_start_together_get_folders_of_their_own(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: new_run_folder(tmp_path / "out", "vl"), range(16)))
    assert len(set(folders)) == 16
    assert all(folder.is_dir() and folder.name.startswith("vl-") for folder in folders)


def test_nothing_is_written_into_the_package() -> None:
    with pytest.raises(ConfigError, match="lies inside the package"):
        new_run_folder(ROOT / "video_llama/output", "vl")
    assert not (ROOT / "video_llama/output").exists()


def test_one_process_at_a_time_has_a_folder(tmp_path: Path) -> None:
    first, second = RunFolder(tmp_path), RunFolder(tmp_path)
    first.claim()
    with pytest.raises(ConfigError, match="another process is training in this folder"):
        second.claim()
    first.release()
    second.claim()
    second.release()


def test_a_killed_process_has_no_claim(tmp_path: Path) -> None:
    code = (
        "import os, sys; from pathlib import Path;"
        "from video_llama.runners.folder import RunFolder;"
        "RunFolder(Path(sys.argv[1])).claim() or os.kill(os.getpid(), 9)"
    )
    dead = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, check=False)
    assert dead.returncode == -9
    folder = RunFolder(tmp_path)
    folder.claim()
    folder.release()


def test_what_is_needed_to_repeat_a_run_is_written_down(tmp_path: Path) -> None:
    describe_run(tmp_path, config="run: {}\n", step=0, world_size=2)
    describe_run(tmp_path, config="run: {seed: 1}\n", step=30, world_size=2)
    assert (tmp_path / "config.yaml").read_text() == "run: {}\n"
    assert (tmp_path / "config-step-000030.yaml").read_text() == "run: {seed: 1}\n"
    described = json.loads((tmp_path / "environment.json").read_text())
    assert {"torch", "transformers", "accelerate", "video-llama"} <= set(described["packages"])
    assert described["world_size"] == 2
    if (ROOT / ".git").exists():
        assert len(described["revision"].removesuffix("+changes")) == 40


def test_a_folder_whose_run_never_began_goes_away_and_one_with_results_stays(
    tmp_path: Path,
) -> None:
    for name in ("empty", "full"):
        (tmp_path / name).mkdir()
    (tmp_path / "full/log.jsonl").write_text("{}\n")
    for name in ("empty", "full"):
        folder = RunFolder(tmp_path / name)
        folder.claim()
        RunFolder(tmp_path / name).discard()  # of a process that has no claim
        assert (tmp_path / name).is_dir()
        folder.discard()
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    again = RunFolder(tmp_path / "full")
    again.claim()
    again.release()


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
def test_a_place_where_no_folder_can_be_made_is_an_error(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match=r"run\.output_dir: .* no folder can be made there"):
        new_run_folder(tmp_path / place, "vl")


def test_a_folder_that_cannot_be_written_to_is_an_error(tmp_path: Path) -> None:
    (tmp_path / ".lock").mkdir()  # stands for a read-only disk, which a test cannot count on
    with pytest.raises(ConfigError, match="the run cannot go on there"):
        RunFolder(tmp_path).claim()


@pytest.mark.parametrize("number", [errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOENT])
def test_a_disk_that_is_lost_is_one_error_that_says_how_to_go_on(
    number: int, tmp_path: Path
) -> None:
    log = str(tmp_path / "log.jsonl")
    message = rf"^{log}: the run cannot write there any more \(.*go on with run\.resume_ckpt_path="
    with pytest.raises(RunFolderError, match=message), disk_errors(tmp_path):
        raise OSError(number, os.strerror(number), log)


def test_a_full_disk_says_so_and_other_errors_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(DiskFullError, match="no room for the logs"), disk_errors(tmp_path):
        raise OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(FileNotFoundError, match=r"clip\.mp4"), disk_errors(tmp_path / "run"):
        (tmp_path / "clip.mp4").open("rb")
    with pytest.raises(ConnectionResetError), disk_errors(tmp_path):
        raise ConnectionResetError(errno.ECONNRESET, "reset")
