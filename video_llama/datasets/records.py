"""Annotated items, before anything is decoded."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from video_llama.datasets.sampling import Integers
from video_llama.types import MediaError

Turns = list[tuple[str, str]]
"""Questions and answers."""

MAX_LENGTH = 65535
"""Longest text length that is told from longer ones, bytes."""


MAX_NAMED = 1000
"""Most ids that `fingerprint` looks at."""

_CHUNK = 1 << 20


class MediaSource(Protocol):
    """Where the media of an item are."""

    def open(self) -> AbstractContextManager[Path]:
        """A path under which the media can be read inside the block.

        Raises:
            MediaError: they are not there.
        """

    def identity(self) -> str | None:
        """What changes when the content does, without reading it; None if they are not there."""


@dataclass(frozen=True)
class MediaFile:
    """A media file of its own.

    Attributes:
        path: where it is.
        folder: that it must lie in: an annotation of others names no other files of this machine.
    """

    path: Path
    folder: Path

    def open(self) -> AbstractContextManager[Path]:
        """As in `MediaSource`."""
        if not self._is_inside:
            raise MediaError(self.path, f"its name leads out of {self.folder}")
        return nullcontext(self.path)

    def identity(self) -> str | None:
        """As in `MediaSource`."""
        return file_identity(self.path) if self._is_inside else None

    @property
    def _is_inside(self) -> bool:
        inside = self.path.is_relative_to(self.folder)
        return inside and ".." not in self.path.relative_to(self.folder).parts


def file_identity(path: Path) -> str | None:
    """Path, size and time of change of a file; None if there is none."""
    try:
        state = path.stat()
    except OSError:
        return None
    return f"{path.absolute()}|{state.st_size}|{state.st_mtime_ns}"


@dataclass(frozen=True)
class Record:
    """An annotated item.

    Attributes:
        item_id: names it within its data set: the path that the annotation gives, or a key.
        media: its picture, clip or sound.
        path: where that is, for messages.
        caption: of caption data, as annotated.
        turns: of conversations, as annotated.
    """

    item_id: str
    media: MediaSource
    path: Path
    caption: str = ""
    turns: tuple[tuple[str, str], ...] = ()


class Records(Protocol):
    """The annotated items of a data set. Workers share its memory."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """The item of that number.

        Raises:
            MediaError: its place in a shard cannot be read.
        """

    def locate(self, index: int) -> tuple[str, Path]:
        """Id and path of an item, also of one that cannot be read."""

    def lengths(self, indices: Integers) -> Integers:
        """Sizes of the texts of items, in bytes."""


class TableRecords:
    """Items whose annotation lies in Arrow columns, not in Python objects.

    Args:
        names: columns from which `locate` makes the name of the media, such as folder and file.
        texts: captions, or conversations as `pack_turns` makes them.
        locate: from the values of `names` in a row to the item's name and its file.
        folder: that the files lie in.
        has_conversations: what `texts` holds.
    """

    def __init__(
        self,
        names: Sequence[pa.ChunkedArray],
        texts: pa.ChunkedArray,
        *,
        locate: Callable[..., tuple[str, Path]],
        folder: Path,
        has_conversations: bool = False,
    ) -> None:
        self._names = names
        self._texts = texts
        self._locate = locate
        self._folder = folder
        self._has_conversations = has_conversations
        sizes = pc.min_element_wise(pc.binary_length(texts), MAX_LENGTH)
        self._sizes = sizes.cast(pa.uint16()).to_numpy()
        del sizes
        # What was needed to read and check the table would else count for every worker.
        pa.default_memory_pool().release_unused()

    def __len__(self) -> int:
        return len(self._texts)

    def __getitem__(self, index: int) -> Record:
        item_id, path = self.locate(index)
        media = MediaFile(path, self._folder)
        text = self._texts[index].as_py()
        if self._has_conversations:
            return Record(item_id, media, path, turns=unpack_turns(text))
        return Record(item_id, media, path, caption=text)

    def locate(self, index: int) -> tuple[str, Path]:
        """As in `Records`."""
        return self._locate(*(column[index].as_py() for column in self._names))

    def lengths(self, indices: Integers) -> Integers:
        """As in `Records`."""
        sizes: Integers = self._sizes[indices].astype(np.int64)
        return sizes


def fingerprint(records: Records) -> str:
    """What tells an annotation from a changed one; that of files and of tars of them is the same.

    It is of the number of items, the lengths of all texts and, evenly spread, `MAX_NAMED` ids.

    Args:
        records: all items of a data set.

    Returns:
        The number of items and a hash.
    """
    count = len(records)
    digest = hashlib.blake2b(digest_size=8)
    for start in range(0, count, _CHUNK):
        lengths = records.lengths(np.arange(start, min(start + _CHUNK, count)))
        digest.update(lengths.astype("<i8").tobytes())
    for index in range(0, count, max(1, -(-count // MAX_NAMED))):
        digest.update(repr(records.locate(index)[0]).encode("utf-8", "surrogatepass"))
    return f"{count} items ({digest.hexdigest()})"


def pack_turns(turns: Turns) -> str:
    """A conversation as one text, to be kept in a column."""
    return json.dumps(turns, ensure_ascii=False, separators=(",", ":"))


def unpack_turns(text: str) -> tuple[tuple[str, str], ...]:
    """The conversation of `pack_turns`."""
    return tuple((question, answer) for question, answer in json.loads(text))
