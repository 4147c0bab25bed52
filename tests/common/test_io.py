"""Files are written whole or not at all."""

from __future__ import annotations

import errno
import os
import resource
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.reference import ROOT
from video_llama.common.io import (
    DiskFullError,
    atomic_write,
    is_disk_full,
    one_line,
    shown,
    without_controls,
)
from video_llama.models.weights.save import save_pickle, save_tensors

FULL = Path("/dev/full")


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def write(path: Path, content: bytes, error: BaseException) -> None:
    """Writes a file and fails just before its end."""
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)
        raise error


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """Lets no file of this process grow beyond `size` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_file_appears_when_the_block_ends(tmp_path: Path) -> None:
    path = tmp_path / "new/folder/a.txt"
    with atomic_write(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
        assert temporary.parent == path.parent
    assert path.read_text() == "new"
    assert names(path.parent) == ["a.txt"]


def test_a_file_may_be_read_by_whom_the_umask_allows(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.write_bytes(b"")
    save_tensors({"a": torch.zeros(1)}, tmp_path / "a.safetensors", {})
    save_pickle({}, tmp_path / "a.pth")
    assert {path.stat().st_mode for path in tmp_path.iterdir()} == {plain.stat().st_mode}


@pytest.mark.parametrize("error", [ValueError("wrong"), KeyboardInterrupt()])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, error: BaseException
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    with pytest.raises(type(error)):
        write(path, b"half", error)
    assert path.read_text() == "old"
    assert names(tmp_path) == ["a.txt"]


def test_a_killed_process_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")
    code = f"""
import os, pathlib, signal
from video_llama.common.io import atomic_write
with atomic_write(pathlib.Path({str(path)!r})) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    assert done.returncode == -9
    assert path.read_text() == "old"


def test_the_content_is_on_the_disk_before_the_name_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, order = tmp_path / "a.txt", []
    synced = os.fsync

    def fsync(descriptor: int) -> None:
        order.append("old" if path.read_text() == "old" else "new")
        synced(descriptor)

    path.write_text("old")
    monkeypatch.setattr(os, "fsync", fsync)
    with atomic_write(path) as temporary:
        temporary.write_text("new")
    assert order == ["old", "new"]  # the file, then the folder that names it


def test_a_full_disk_is_told_in_numbers(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")
    with pytest.raises(DiskFullError) as raised:
        write(path, bytes(2_500_000), OSError(errno.ENOSPC, "No space left on device"))
    message = str(raised.value)
    assert f"no room for {path}: 2.5 MB were written" in message
    assert " MB are free now; make more room in" in message
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["a.bin"]


def test_a_limit_on_the_size_of_files_is_a_full_disk(tmp_path: Path) -> None:
    tensors = {"a": torch.zeros(100_000)}
    with largest_file(100_000):
        with pytest.raises(DiskFullError, match=r"no room for .*a\.safetensors: "):
            save_tensors(tensors, tmp_path / "a.safetensors", {})
        with pytest.raises(DiskFullError, match=r"no room for .*a\.pth: 0\.1 MB"):
            save_pickle(tensors, tmp_path / "a.pth")
    assert names(tmp_path) == []


@pytest.mark.skipif(not FULL.is_char_device(), reason="this system has no /dev/full")
def test_a_full_disk_is_recognised_in_the_words_of_torch() -> None:
    with pytest.raises(RuntimeError) as raised:
        torch.save({"a": torch.zeros(100_000)}, FULL)
    assert is_disk_full(raised.value)
    with pytest.raises(OSError, match="No space left") as plain:
        FULL.write_bytes(b"x")
    assert is_disk_full(plain.value)


def test_other_errors_are_no_full_disk(tmp_path: Path) -> None:
    assert not is_disk_full(PermissionError(errno.EACCES, "Permission denied"))
    with pytest.raises(Exception, match="No such file") as raised:
        save_file({"a": torch.zeros(1)}, tmp_path / "no/folder.safetensors")
    assert not is_disk_full(raised.value)


def test_of_two_writers_the_last_wins_and_nothing_is_left(tmp_path: Path) -> None:
    path, barrier = tmp_path / "a.txt", threading.Barrier(4)

    def write(letter: str) -> None:
        for _ in range(10):
            with atomic_write(path) as temporary:
                temporary.write_text(letter * 10_000)
                barrier.wait()

    threads = [threading.Thread(target=write, args=(letter,)) for letter in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    text = path.read_text()
    assert text in {letter * 10_000 for letter in "abcd"}
    assert names(tmp_path) == ["a.txt"]


def test_names_and_messages_show_what_cannot_be_printed() -> None:
    assert shown("caf\xe9 \u72d7.mp4") == "caf\xe9 \u72d7.mp4"
    assert shown("a\x1b[31m\u202e\r\n.mp4") == "a\\x1b[31m\\u202e\\r\\n.mp4"
    assert shown("a\nb\x07", keep="\n") == "a\nb\\x07"
    assert one_line(FileNotFoundError(2, "No", "a\x1b]0;x\x07")) == "a\\x1b]0;x\\x07: no"


def test_answers_keep_their_lines_and_lose_control_characters() -> None:
    assert without_controls("a\n\tb\r\x1b[2J\x9b\x7f \u3000\u200d") == "a\n\tb[2J \u3000\u200d"
