"""The checks that come before a file is opened as media, and reading its bytes."""

from __future__ import annotations

import stat
from pathlib import Path

from video_llama.types import MediaError


def check_file(path: str | Path) -> Path:
    """The absolute path of a file that can be opened and is not empty.

    Raises:
        MediaError: it is not there, not a file, empty, or may not be read.
    """
    try:
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
    """The bytes of a file.

    Args:
        path: of the file.
        size: how many to read at most; -1: all.

    Raises:
        MediaError: as in `check_file`, or the disk or network fails.
    """
    try:
        with check_file(path).open("rb") as file:
            return file.read(size)
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise MediaError(path, f"it cannot be read: {reason}") from error
