"""Giving back the pages of a memory-mapped file whose numbers have been copied elsewhere."""

from __future__ import annotations

import ctypes
import mmap
import sys
from pathlib import Path

from torch import Tensor


class MappedPages:
    """The places in memory where a file is mapped.

    A tensor that is converted or moved leaves its source behind: pages that have been read count
    as this process's memory until the file is closed, although nobody looks at them again. Only
    mappings of the file itself are touched. Their pages come back from the file, should they be
    read once more; where the system has no such mappings, nothing is done.

    Args:
        path: of the file, which has been opened.
    """

    def __init__(self, path: Path) -> None:
        self._ranges: list[tuple[int, int]] = []
        if sys.platform == "linux":
            wanted = str(path.resolve())
            for line in Path("/proc/self/maps").read_text(errors="replace").splitlines():
                fields = line.split(maxsplit=5)
                if len(fields) == 6 and fields[5] == wanted and "w" not in _shared(fields[1]):
                    start, _, end = fields[0].partition("-")
                    self._ranges.append((int(start, 16), int(end, 16)))

    def release(self, tensor: Tensor) -> None:
        """Give back the pages that lie wholly within a tensor, if they are the file's."""
        start = tensor.data_ptr()
        end = start + tensor.numel() * tensor.element_size()
        first = -(-start // mmap.PAGESIZE) * mmap.PAGESIZE
        length = end // mmap.PAGESIZE * mmap.PAGESIZE - first
        if length > 0 and any(low <= start and end <= high for low, high in self._ranges):
            libc = ctypes.CDLL(None)
            libc.madvise(ctypes.c_void_p(first), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def _shared(permissions: str) -> str:
    """The permissions of a shared mapping, which is left alone if it can be written."""
    return permissions if permissions.endswith("s") else ""
