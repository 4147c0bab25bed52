"""Read and write files, find those that ship with the project, and print text safely.

A file is written whole or not at all. Text from users and files is shown without the codes that
would steer a terminal. Torch-free and quick to import.
"""

from __future__ import annotations

import argparse
import contextlib
import errno
import os
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

from video_llama.types import MediaError, VideoLlamaError

PACKAGE = Path(__file__).resolve().parents[1]
_CONTROLS = {code: None for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_TEXTS = (
    *("No space left", "os error 28", "os error 122", "os error 27"),  # as safetensors tells it
    *("unexpected pos", "PytorchStreamWriter failed writing"),  # torch.save, which drops the reason
)


class DiskFullError(VideoLlamaError):
    """There was no room for a file; names the folder and how much to free."""


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Give a temporary path beside `path`, which becomes `path` when the block ends well.

    The content is on the disk before the name changes, so that a crash at any time leaves the old
    file or the new one, never half of one.

    Raises:
        DiskFullError: no room; the temporary file is gone and `path` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    writer = f"{os.getpid()}-{threading.get_ident()}"  # each writes its own; the last one wins
    temporary = path.with_name(f".{path.name}.{writer}.tmp")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        temporary.chmod(mode)  # safetensors puts a file in its place that only its owner may read
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except BaseException as error:
        size = temporary.stat().st_size if temporary.exists() else 0
        temporary.unlink(missing_ok=True)
        if is_disk_full(error):
            free = shutil.disk_usage(path.parent).free
            raise DiskFullError(
                f"no room for {path}: {size / 1e6:.1f} MB were written before the disk or a quota "
                f"was full, {free / 1e6:.1f} MB are free now; make more room in {path.parent}, or "
                "write elsewhere"
            ) from error
        raise


def is_disk_full(error: BaseException) -> bool:
    """Return whether an error, also of a native library, says that a disk or quota is full."""
    by_number = isinstance(error, OSError) and error.errno in _FULL
    return by_number or any(text in str(error) for text in _FULL_TEXTS)


def _sync(path: Path) -> None:
    # Also a folder: renaming is on the disk only when the folder that holds the name is.
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def resource(name: str) -> Path:
    """Find a file or folder of the project, such as `eval_configs/tiny.yaml`.

    A wheel carries these under `video_llama/_data`; in a checkout they lie beside the package.
    """
    # The wheel first: a folder of the same name may lie beside an installed package.
    candidates = [PACKAGE / "_data" / name, PACKAGE.parent / name]
    for path in candidates:
        if path.exists():
            return path
    raise FileNotFoundError(f"{name} is in neither place: {', '.join(map(str, candidates))}")


def package_file(name: str) -> Path:
    """Return the path of package data, such as `presets/tiny/llama`; it need not exist."""
    return PACKAGE / name


def default_config_path() -> Path:
    """Return the configuration that the commands use when none is given: the tiny preset."""
    return resource("eval_configs/tiny.yaml")


def shown(text: str, *, keep: str = "") -> str:
    """Escape everything in a text that cannot be printed, as `repr` does; `keep` stays."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def without_controls(text: str) -> str:
    """Remove control characters other than newline and tab from a text."""
    return text.translate(_CONTROLS)


def one_line(error: Exception | str) -> str:
    """Return the message of an error in one line, with the file if the system reports one."""
    message = str(error)
    if isinstance(error, OSError) and error.filename is not None:
        message = f"{error.filename}: {(error.strerror or message).lower()}"
    return shown(" ".join(message.splitlines()))


def positive(text: str) -> int:
    """Convert text to a whole number of at least 1, for `type=` of an argument."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} given, at least 1 expected")
    return number


def check_file(path: str | Path) -> Path:
    """Return the absolute path of a file that can be opened and is not empty.

    Raises:
        MediaError: it is not there, not a file, empty, or may not be read.
    """
    try:
        # A name may hold a NUL or be too long, which only the operating system finds out.
        absolute = Path(path).absolute()
        status = absolute.stat()
        if stat.S_ISREG(status.st_mode):
            absolute.open("rb").close()
    except FileNotFoundError as error:
        raise MediaError(path, "there is no such file") from error
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise MediaError(path, f"it cannot be opened: {str(reason).lower()}") from error
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
        raise MediaError(path, f"it is {what}, a media file was expected")
    if status.st_size == 0:
        raise MediaError(path, "the file is empty")
    return absolute


def read_file(path: str | Path, size: int = -1) -> bytes:
    """Read at most `size` bytes of a file; -1: all. Raises as `check_file` does."""
    try:
        with check_file(path).open("rb") as file:
            return file.read(size)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise MediaError(path, f"it cannot be read: {reason}") from error
