"""The folder of a run: made for one run alone, with what is needed to repeat it."""

from __future__ import annotations

import fcntl
import importlib.metadata
import json
import platform
import shutil
import subprocess
import sys
import time
from itertools import count
from pathlib import Path
from typing import IO

import video_llama
from video_llama.types import ConfigError

PACKAGES = (
    *("torch", "transformers", "accelerate", "timm", "torchvision", "torchaudio"),
    *("decord", "av", "safetensors", "webdataset", "numpy", "sentencepiece"),
)
"""Packages whose versions are recorded."""

LOCK = ".lock"
"""The file that a process holds as long as the folder is its own."""


def new_run_folder(output_dir: Path, name: str) -> Path:
    """Make `<output_dir>/<name>-<time>`, which no other run has.

    Raises:
        ConfigError: it would lie inside the package, or cannot be made.
    """
    package = Path(video_llama.__file__).resolve().parent
    if output_dir.resolve().is_relative_to(package):
        raise ConfigError(
            f"run.output_dir: {output_dir} lies inside the package ({package}); results do not "
            "belong there, choose another folder"
        )
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        return _new_folder(output_dir, f"{name}-{time.strftime('%Y%m%d-%H%M%S')}")
    except OSError as error:
        raise ConfigError(
            f"run.output_dir: {output_dir} given, but no folder can be made there: "
            f"{error.strerror}; choose another one"
        ) from error


def _new_folder(output_dir: Path, stem: str) -> Path:
    for number in count(1):
        path = output_dir / (stem if number == 1 else f"{stem}-{number}")
        try:
            path.mkdir()  # fails where it exists, also for runs that start in the same second
        except FileExistsError:
            continue
        return path
    raise AssertionError("numbers do not end")


class RunFolder:
    """The folder of a run, which one process at a time may claim.

    Args:
        path: it exists.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: IO[str] | None = None

    def claim(self) -> None:
        """Keep others out until this process ends, however it ends.

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
        """Let others in."""
        if self._lock is not None:
            self._lock.close()

    def discard(self) -> None:
        """Release a folder whose run has not begun, and remove it if nothing is in it."""
        if self._lock is not None and [path.name for path in self.path.iterdir()] == [LOCK]:
            shutil.rmtree(self.path, ignore_errors=True)
        self.release()


def describe_run(folder: Path, *, config: str, step: int, world_size: int) -> None:
    """Write the configuration, the versions and the revision beside the results.

    Args:
        folder: of the run.
        config: the resolved YAML.
        step: where it starts; a resumed run keeps the files of the run's beginning.
        world_size: number of processes.
    """
    mark = f"-step-{step:06d}" if step else ""
    (folder / f"config{mark}.yaml").write_text(config, encoding="utf-8")
    environment = {
        "command": sys.argv,
        "world_size": world_size,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "revision": git_revision(),
        "packages": package_versions(),
    }
    text = json.dumps(environment, indent=2)
    (folder / f"environment{mark}.json").write_text(text + "\n", encoding="utf-8")


def package_versions() -> dict[str, str]:
    """Versions of this package and of those that shape its results."""
    versions = {"video-llama": video_llama.__version__}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # decord is not there on every platform
    return versions


def git_revision() -> str | None:
    """The commit of the checkout, with "+changes" where files differ; None outside of one."""
    root = Path(video_llama.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        commit, changes = (
            subprocess.run(
                ["git", "-C", str(root), *command],
                capture_output=True,
                text=True,
                check=True,
                timeout=20,
            ).stdout.strip()
            for command in (
                ["rev-parse", "HEAD"],
                ["status", "--porcelain", "--untracked-files=no"],
            )
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+changes" if changes else "")
