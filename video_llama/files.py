"""Writing files that are either whole or not there. A leaf of the import graph."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

from video_llama.types import VideoLlamaError


class DiskFullError(VideoLlamaError):
    """There was no room for a file; names the folder and how much to free."""


_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}
_FULL_TEXTS = (
    *("No space left", "os error 28", "os error 122", "os error 27"),  # as safetensors tells it
    *("unexpected pos", "PytorchStreamWriter failed writing"),  # torch.save, which drops the reason
)


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """A temporary path beside `path`, which becomes `path` when the block ends well.

    The content is on the disk before the name changes, so that a crash at any time leaves the old
    file or the new one, never half of one.

    Args:
        path: the file to write; its folder is made.

    Yields:
        The temporary path to write to.

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
    """Whether an error, of Python or of a native library, says that a disk or quota is full."""
    if isinstance(error, OSError) and error.errno in _FULL:
        return True
    return any(text in str(error) for text in _FULL_TEXTS)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
