"""Where the samples of a webdataset tar lie, so that any of them can be read by itself.

The index is an Arrow file beside its tar, memory-mapped by every reader. A tar without one gets it
on first use; where the folder cannot be written, the index goes to the user's cache.
"""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa

from video_llama.datasets.arrow_files import (
    cache_folder,
    is_read_only,
    open_table,
    write_table,
)
from video_llama.datasets.records import pack_turns
from video_llama.text import clean_text
from video_llama.types import ConfigError

NOT_MEDIA = {"json", "txt"}
"""Suffixes of members that are no media."""

_SCHEMA = pa.schema(
    {
        "name": pa.string(),
        "item_id": pa.string(),
        "media_offset": pa.int64(),
        "media_size": pa.int64(),
        "text_offset": pa.int64(),
        "text_size": pa.int64(),
        "length": pa.int64(),
    }
)
_VERSION = b"1"


@dataclass
class Sample:
    """A sample of a tar. Offsets and sizes are bytes; a size of -1 says that there is no such part.

    Attributes:
        name: of its media member, or its key if it has none.
        item_id: what the annotation called it, or its key.
        media_offset: where the picture, clip or sound starts.
        media_size: of it.
        text_offset: where the JSON starts.
        text_size: of it.
        length: of the caption or conversation in it.
    """

    name: str
    item_id: str
    media_offset: int = 0
    media_size: int = -1
    text_offset: int = 0
    text_size: int = -1
    length: int = 0


def open_index(tar: Path) -> pa.Table:
    """The index of a tar, memory-mapped; made if there is none that fits.

    Args:
        tar: not compressed.

    Raises:
        ConfigError: it is no tar, is cut short, or is empty.
    """
    for path in (_beside(tar), _cached(tar)):
        table = open_table(path, _SCHEMA, _metadata(tar))
        if table is not None:
            return table
    samples = list(_samples(tar))
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


def _samples(tar: Path) -> Iterator[Sample]:
    """The samples in the order of the tar; members of one sample follow one another."""
    key, sample = None, Sample("", "")
    try:
        end = tar.stat().st_size
        with tarfile.open(tar, "r:") as members:
            for member in members:
                _check_size(member, end)
                if not member.isfile():
                    continue
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                found = f"{folder}/{stem}" if folder else stem
                if found != key:
                    if key is not None:
                        yield sample
                    key, sample = found, Sample(found, found)
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


def _add(sample: Sample, tar: tarfile.TarFile, member: tarfile.TarInfo, suffix: str) -> None:
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
    """The JSON object of a sample; empty if there is none."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def text_in(content: dict[str, Any]) -> str:
    """The caption of a sample, or its conversation as `pack_turns` makes it; empty without one."""
    turns = content.get("turns")
    if isinstance(turns, list):
        return pack_turns(turns)
    caption = content.get("caption")
    return clean_text(caption) if isinstance(caption, str) else ""
