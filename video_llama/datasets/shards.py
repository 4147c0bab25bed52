"""Items in webdataset tars: Conceptual Captions, SBU, LAION, and whatever `data pack` wrote.

An index says where the samples of a tar lie, so that any of them can be read by itself. It is an
Arrow file beside its tar, memory-mapped by every reader. A tar without one gets it on first use.
Where the folder cannot be written, the index goes to the user's cache.
"""

from __future__ import annotations

import json
import os
import re
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from glob import glob
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from video_llama.datasets.records import MAX_LENGTH, Record, file_identity, is_missing, pack_turns
from video_llama.datasets.sampling import Integers
from video_llama.datasets.tables import cache_folder, is_read_only, open_table, write_table
from video_llama.text.tokenizer import clean_text
from video_llama.types import ConfigError, MediaError

NOT_MEDIA = {"json", "txt"}
"""Suffixes of members that are no media."""

GONE = -1
"""Size of a file that is not there."""

MAX_TARS = 1_000_000
"""Most tars of a data set."""

_CHOICE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(-?\d+)\.\.(-?\d+)(?:\.\.-?(\d+))?")


@dataclass
class IndexEntry:
    """Where media and JSON of a sample lie in its tar, in bytes; a size of -1: there are none.

    Attributes:
        name: of its media member, or its key if it has none.
        item_id: what the annotation called it, or its key.
        length: of the caption or conversation in the JSON, bytes.
    """

    name: str
    item_id: str
    media_offset: int = 0
    media_size: int = -1
    text_offset: int = 0
    text_size: int = -1
    length: int = 0


# Old indices have these columns in this order: a change needs another version.
_SCHEMA = pa.schema(
    [(f.name, pa.string() if f.type == "str" else pa.int64()) for f in fields(IndexEntry)]
)
_VERSION = b"1"


def open_index(tar: Path) -> pa.Table:
    """Map the index of a tar into memory; it is made if there is none that fits.

    Raises:
        ConfigError: it is no tar, is cut short, or is empty.
    """
    # Beside the tar first: there it serves every user and machine that has the tar.
    for path in (_beside(tar), _cached(tar)):
        table = open_table(path, _SCHEMA, _metadata(tar))
        if table is not None:
            return table
    samples = list(_scan(tar))
    if not samples:
        raise ConfigError(f"{tar}: no samples in it; <key>.json and <key>.jpg or the like expected")
    table = pa.Table.from_pylist([asdict(sample) for sample in samples], schema=_SCHEMA)
    _write(table, tar)
    return table


def _beside(tar: Path) -> Path:
    return tar.with_name(f"{tar.name}.index")


def _cached(tar: Path) -> Path:
    name = blake2b(str(tar.absolute()).encode(), digest_size=12).hexdigest()
    return cache_folder("shards") / f"{name}.index"


def _index_of(tar: Path) -> Path:
    return next((path for path in (_beside(tar), _cached(tar)) if path.exists()), _beside(tar))


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return GONE


def _metadata(tar: Path) -> dict[bytes, bytes]:
    return {b"version": _VERSION, b"tar_bytes": str(tar.stat().st_size).encode()}


def _write(table: pa.Table, tar: Path) -> None:
    """Write an index beside its tar, or to the cache, or nowhere if neither can be written."""
    for path in (_beside(tar), _cached(tar)):
        try:
            write_table(path, table.to_batches(), _SCHEMA.with_metadata(_metadata(tar)))
        except OSError as error:
            if not is_read_only(error):
                raise
        else:
            return


def _scan(tar: Path) -> Iterator[IndexEntry]:
    """Find the samples in the order of the tar."""
    key, sample = None, IndexEntry("", "")
    try:
        end = tar.stat().st_size
        # "r:" refuses compressed tars, in which no sample can be read by itself.
        with tarfile.open(tar, "r:") as members:
            for member in members:
                _check_size(member, end)
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                found = f"{folder}/{stem}" if folder else stem
                # Members of a sample share a name up to the first dot and follow one another.
                if found != key:
                    if key is not None:
                        yield sample
                    key, sample = found, IndexEntry(found, found)
                _add(sample, members, member, suffix.lower())
    except (tarfile.TarError, OSError, OverflowError, MemoryError) as error:
        raise ConfigError(f"{tar}: cannot be read as an uncompressed tar: {error}") from error
    if key is not None:
        yield sample


def _check_size(member: tarfile.TarInfo, end: int) -> None:
    """Refuse a size that a header makes up: base-256 numbers reach far beyond any file."""
    if not 0 <= member.size <= end - member.offset_data:
        raise tarfile.ReadError(
            f"{member.name} has {member.size} bytes by its header, but the tar ends "
            f"{end - member.offset_data} bytes after it"
        )


def _add(sample: IndexEntry, tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> None:
    # The first of a kind counts, as in webdataset, where a sample has several.
    if suffix == "json" and sample.text_size < 0:
        sample.text_offset, sample.text_size = member.offset_data, member.size
        file = tar.extractfile(member)
        content = parsed(file.read() if file else b"")
        sample.item_id = clean_text(str(content.get("item_id", sample.item_id)))
        sample.length = len(text_in(content).encode())
    elif suffix not in NOT_MEDIA and sample.media_size < 0:
        sample.name = clean_text(member.name)
        sample.media_offset, sample.media_size = member.offset_data, member.size


def parsed(data: bytes) -> dict[str, Any]:
    """Read the JSON object of a sample; empty if there is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def text_in(content: dict[str, Any]) -> str:
    """Return the caption of a sample, or its conversation as `pack_turns` has it; or nothing."""
    turns = content.get("turns")
    if isinstance(turns, list):
        return pack_turns(turns)
    caption = content.get("caption")
    return clean_text(caption) if isinstance(caption, str) else ""


def expand_shards(pattern: str) -> list[Path]:
    """Return the tars of `a.tar`, `a/{000..012}.tar` or `a/*.tar`, the last sorted by name.

    Raises:
        ConfigError: there are none, one is missing, or there would be millions.
    """
    from webdataset.shardlists import expand_urls  # takes more than a second to import

    # A pattern with braces promises its tars, so that one which is missing is an error. A star
    # takes what is there.
    try:
        _check_count(pattern)
        names = expand_urls(pattern)
    except ValueError as error:  # unbalanced braces, or a number with thousands of digits
        raise ConfigError(f"build_info.storage: {pattern!r} given: {error}") from error
    found: list[str] = []
    for name in names:
        found += sorted(glob(name)) if "*" in name else [name]  # noqa: PTH207 (a whole pattern)
    paths = [Path(name) for name in found]
    missing = [str(path) for path in paths if not path.is_file()]
    if missing or not paths:
        reason = "no tar has such a name"
        if missing:
            reason = f"{len(missing)} of its tars are missing, first {missing[0]}"
        raise ConfigError(f"build_info.storage: {pattern!r} given, but {reason}")
    return paths


def _check_count(pattern: str) -> None:
    """Refuse a pattern before its names would fill the memory."""
    # A rough count is enough: of nested braces only the inner ones are counted.
    count = 1
    for choice in _CHOICE.findall(pattern):
        bounds = _RANGE.fullmatch(choice)
        if bounds:
            first, last, step = bounds.groups(default="1")
            count *= abs(int(last) - int(first)) // (int(step) or 1) + 1
        else:
            count *= choice.count(",") + 1
    if count > MAX_TARS:
        raise ConfigError(
            f"build_info.storage: {pattern!r} stands for {count} tars, at most {MAX_TARS} "
            "expected: mend the numbers in its braces"
        )


class ShardRecords:
    """The samples of uncompressed webdataset tars, in the order of the tars.

    Each has a picture, clip or sound and a JSON object with `caption`, or with `turns`.

    Raises:
        ConfigError: a tar cannot be read.
    """

    def __init__(self, tars: list[Path], *, has_conversations: bool) -> None:
        self._tars = tars
        self._has_conversations = has_conversations
        tables = [open_index(tar) for tar in tars]
        self._sizes = [(path, _size(path)) for path in map(_index_of, tars)]
        self._starts = np.cumsum([0, *map(len, tables)])
        # One table of many chunks, all of them maps of files: nothing is copied, and processes of a
        # machine share the memory.
        self._index = pa.concat_tables(tables)
        self._lengths = self._index["length"].to_numpy().clip(max=MAX_LENGTH)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, index: int) -> Record:
        """Return the sample of that number.

        Raises:
            MediaError: it has no caption or conversation, or its tar cannot be read.
        """
        # The text is read from the tar each time: captions of all samples would fill the memory.
        item_id, path = self.locate(index)
        tar = self._tars[self._tar_of(index)]
        content = parsed(self._span("text", index, tar).read(path))
        error = str(content.get("error", ""))
        media = ShardMember(path, self._span("media", index, tar), error)
        if self._has_conversations:
            try:
                turns = tuple((str(q), str(a)) for q, a in content.get("turns", ()))
            except (TypeError, ValueError):
                turns = ()
            if turns:
                return Record(item_id, media, path, turns=turns)
            raise MediaError(path, "the JSON of the sample has no 'turns'")
        caption = content.get("caption")
        if not isinstance(caption, str):
            raise MediaError(path, "the JSON of the sample has no 'caption'")
        if is_missing(caption):
            raise MediaError(path, f"the JSON of the sample has no 'caption' but {caption!r}")
        return Record(item_id, media, path, caption=clean_text(caption))

    def locate(self, index: int) -> tuple[str, Path]:
        """See `Records`; the path is that of the tar with the name of the member behind it."""
        number = self._tar_of(index)
        index_file, size = self._sizes[number]
        if _size(index_file) not in (size, GONE):
            # The map of a file that was cut kills the process that looks at what is gone. One that
            # was deleted, or replaced by an equal one, stays whole until it is closed.
            raise ConfigError(
                f"{self._tars[number]}: its index {index_file} was changed while it was in use: "
                "start again, and it is read or made anew"
            )
        item_id, name = (self._index[key][index].as_py() for key in ("item_id", "name"))
        return item_id, self._tars[number] / name

    def lengths(self, indices: Integers) -> Integers:
        """See `Records`."""
        lengths: Integers = self._lengths[indices]
        return lengths

    def _span(self, part: str, index: int, tar: Path) -> Span:
        offset, size = (self._index[f"{part}_{key}"][index].as_py() for key in ("offset", "size"))
        return Span(tar, offset, size)

    def _tar_of(self, index: int) -> int:
        return int(np.searchsorted(self._starts, index, side="right")) - 1


@dataclass(frozen=True)
class Span:
    """A part of a file: offset and size in bytes; a size of -1 if there is no such part."""

    file: Path
    offset: int
    size: int

    def read(self, path: Path) -> bytes:
        """Read the content; `path` names it in the message of an error.

        Raises:
            MediaError: the file ends before it, or cannot be read.
        """
        if self.size < 0:
            raise MediaError(path, "the sample lacks this part")
        try:
            with self.file.open("rb") as file:
                file.seek(self.offset)
                content = file.read(self.size)
        except OSError as error:
            raise MediaError(path, f"the tar cannot be read: {error.strerror}") from error
        if len(content) < self.size:
            raise MediaError(path, "the tar ends before the sample does")
        return content


@dataclass(frozen=True)
class ShardMember:
    """The media of a sample.

    Attributes:
        path: tar and name, for messages.
        span: where they lie.
        error: why `data pack` could not read them; empty if it could.
    """

    path: Path
    span: Span
    error: str = ""

    @contextmanager
    def open(self) -> Iterator[Path]:
        """Give a file in memory; see `MediaSource`."""
        if self.error:
            raise MediaError(self.path, self.error)
        with _as_file(self.span.read(self.path), self.path.suffix) as path:
            yield path

    def identity(self) -> str | None:
        """Return that of the tar, and the place in it; see `MediaSource`."""
        tar = file_identity(self.span.file)
        if tar is None or self.error:
            return None
        return f"{tar}|{self.span.offset}|{self.span.size}"


@contextmanager
def _as_file(content: bytes, suffix: str) -> Iterator[Path]:
    """Give a path under which bytes can be read: decord takes nothing else."""
    # In memory where that is possible: a file on the disk would be written and read once more for
    # every sample of every epoch.
    if not hasattr(os, "memfd_create"):  # not Linux
        with tempfile.NamedTemporaryFile(suffix=suffix) as file:
            file.write(content)
            file.flush()
            yield Path(file.name)
        return
    descriptor = os.memfd_create("media")
    try:
        with os.fdopen(os.dup(descriptor), "wb") as file:
            file.write(content)
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
