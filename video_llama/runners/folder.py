"""The folder of a run: owned by one run, with what is needed to repeat it."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import asdict
from itertools import count
from pathlib import Path
from typing import IO

import video_llama
from video_llama.common.io import DiskFullError, atomic_write, is_disk_full
from video_llama.runners.distributed import ProcessGroup
from video_llama.types import BadItem, ConfigError, VideoLlamaError

PACKAGES = (
    *("torch", "transformers", "accelerate", "timm", "torchvision", "torchaudio"),
    *("decord", "av", "safetensors", "webdataset", "numpy", "sentencepiece"),
)
"""Packages whose versions are recorded."""

LOCK = ".lock"
"""The file that a process holds as long as the folder is its own."""
BAD_ITEMS = "bad_items.jsonl"

_DISK_LOST = {
    *(errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, errno.ENOENT),
    *(errno.ENODEV, errno.ENXIO, errno.ESTALE, errno.ENOTCONN),
}
"""What the system says of a disk that has turned read-only, has failed or has gone."""


class RunFolderError(VideoLlamaError):
    """The folder of a run can no longer be written to; says how to go on."""


@contextlib.contextmanager
def disk_errors(folder: Path) -> Iterator[None]:
    """Turn the system's errors about the disk of a run into one that says how to go on.

    Args:
        folder: of the run. Its complete checkpoints are untouched by any such error.

    Raises:
        DiskFullError: no room for a log.
        RunFolderError: the disk has become read-only, has failed or has gone.
    """
    try:
        yield
    except OSError as error:
        resume = f"run.resume_ckpt_path={folder}"
        if is_disk_full(error):  # checkpoints say so themselves
            raise DiskFullError(
                f"no room for the logs in {folder} ({error}); make room on that disk, and go on "
                f"with {resume}"
            ) from error
        # An error that names a file elsewhere is one of the data, which is read meanwhile.
        path = Path(error.filename or folder).absolute()
        if error.errno not in _DISK_LOST or not path.is_relative_to(folder.absolute()):
            raise
        raise RunFolderError(
            f"{path}: the run cannot write there any more ({error.strerror}). "
            f"Its complete checkpoints are intact: make the disk writable and go on with {resume}, "
            "or copy the folder and give the copy"
        ) from error


def new_run_folder(output_dir: Path, name: str) -> Path:
    """Make `<output_dir>/<name>-<time>`, which no other run has.

    Raises:
        ConfigError: it would lie inside the package, or cannot be made.
    """
    # The original wrote its results there, where the next update of the package deletes them.
    package = Path(video_llama.__file__).resolve().parent
    if output_dir.resolve().is_relative_to(package):
        raise ConfigError(
            f"run.output_dir: {output_dir} lies inside the package ({package}); results do not "
            "belong there, choose another folder"
        )
    stem = f"{name}-{time.strftime('%Y%m%d-%H%M%S')}"
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        for number in count(1):
            path = output_dir / (stem if number == 1 else f"{stem}-{number}")
            with contextlib.suppress(FileExistsError):  # of a run that starts in the same second
                path.mkdir()
                return path
    except OSError as error:
        raise ConfigError(
            f"run.output_dir: {output_dir} given, but no folder can be made there: "
            f"{error.strerror}; choose another one"
        ) from error
    raise AssertionError("numbers do not end")


class RunFolder:
    """The folder of a run, which one process at a time may claim."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    def claim(self) -> None:
        """Keep other runs out until this process ends, however it ends.

        Raises:
            ConfigError: another process has claimed it, or it cannot be written to.
        """
        try:
            file = (self.path / LOCK).open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"{self.path}: the run cannot go on there: {error.strerror}; copy the folder to "
                "where it can be written, and give that one as run.resume_ckpt_path"
            ) from error
        # The system gives the lock back when the process is killed; a file with a pid would stay.
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise ConfigError(
                f"{self.path}: another process is training in this folder; wait for its end, or "
                "start a run of its own without run.resume_ckpt_path"
            ) from error
        self._lock = file

    def release(self) -> None:
        """Let other runs in."""
        if self._lock is not None:
            self._lock.close()

    def discard(self) -> None:
        """Release a folder whose run has not begun, and remove it if nothing is in it."""
        # Only the process with the lock decides: the others would remove it under its feet.
        if self._lock is not None and [path.name for path in self.path.iterdir()] == [LOCK]:
            shutil.rmtree(self.path, ignore_errors=True)
        self.release()


class BadItemList:
    """`bad_items.jsonl`: each item whose media could not be read, once, with path and reason.

    A resumed run goes on with the list of the interrupted one.
    """

    def __init__(self, folder: Path, processes: ProcessGroup) -> None:
        self.path = folder / BAD_ITEMS
        self._processes = processes
        lines = processes.on_main(self._read)
        self._listed = {(line["data_set"], line["item_id"]) for line in map(json.loads, lines)}

    def __len__(self) -> int:
        return len(self._listed)

    def add(self, items: Iterable[BadItem]) -> None:
        """List those that are new; every process has to call this, with its own."""
        # Every process keeps the whole list, or each would report an item that another one has met.
        lines = []
        for item in self._processes.gather(list(items)):
            if (key := (item.data_set, item.item_id)) not in self._listed:
                self._listed.add(key)
                lines.append(json.dumps(asdict(item), ensure_ascii=False))
        if lines and self._processes.is_main:
            with self.path.open("a", encoding="utf-8") as file:
                file.writelines(f"{line}\n" for line in lines)

    def _read(self) -> list[str]:
        """Read the whole lines; one that a crash has cut short is taken out of the file."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8", errors="replace")
        kept = [line for line in text.splitlines() if _is_item(line)]
        # The line that was cut short would otherwise run into the next one.
        whole = "".join(f"{line}\n" for line in kept)
        if whole != text:
            with atomic_write(self.path) as temporary:
                temporary.write_text(whole, encoding="utf-8")
        return kept


def _is_item(line: str) -> bool:
    try:
        item = json.loads(line)
    except (ValueError, RecursionError):
        return False
    return isinstance(item, dict) and {"data_set", "item_id"} <= item.keys()


def describe_run(folder: Path, *, config: str, step: int, world_size: int) -> None:
    """Write the resolved YAML, the versions and the revision; `step` is where the run starts."""
    # The files of a resumed run go beside those of its beginning: both are needed to repeat it.
    mark = f"-step-{step:06d}" if step else ""
    environment = {
        "command": sys.argv,
        "world_size": world_size,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "revision": git_revision(),
        "packages": package_versions(),
    }
    text = json.dumps(environment, indent=2)
    with disk_errors(folder):
        (folder / f"config{mark}.yaml").write_text(config, encoding="utf-8")
        (folder / f"environment{mark}.json").write_text(text + "\n", encoding="utf-8")


def package_versions() -> dict[str, str]:
    """Return the versions of this package and of those that shape its results."""
    versions = {"video-llama": video_llama.__version__}
    for name in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # decord on some systems
            versions[name] = importlib.metadata.version(name)
    return versions


def git_revision() -> str | None:
    """Return the checkout's commit, with "+changes" where files differ; None outside of one."""
    # Installed packages have none; a repository around them would be somebody else's.
    root = Path(video_llama.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    questions = (["rev-parse", "HEAD"], ["status", "--porcelain", "--untracked-files=no"])
    try:
        commit, changes = (
            subprocess.check_output(
                ["git", "-C", str(root), *words], text=True, timeout=20, stderr=subprocess.DEVNULL
            ).strip()
            for words in questions
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changes else "")
