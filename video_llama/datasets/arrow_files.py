"""Arrow files in the user's cache: read once, memory-mapped ever after."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import pyarrow as pa

from video_llama.files import atomic_write

_VERSION = 1


def cache_folder(kind: str) -> Path:
    """Where files of a kind are kept; `XDG_CACHE_HOME` moves it."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "video_llama" / kind


def cached_table(
    name: Sequence[str],
    state: Any,
    read: Callable[[], Iterable[pa.RecordBatch]],
    schema: pa.Schema,
) -> pa.Table:
    """A table that takes long to read, memory-mapped from the cache; made if it is not there.

    Args:
        name: what it is made of; a later state of the same takes the place of the earlier.
        state: of the sources, as JSON can hold it; another state makes it anew.
        read: gives its parts.
        schema: of the parts.

    Raises:
        DiskFullError: there is no room in the cache.
    """
    digest = blake2b("\0".join(name).encode(), digest_size=12).hexdigest()
    path = cache_folder("tables") / f"{digest}.arrow"
    metadata = {b"state": json.dumps([_VERSION, state]).encode()}
    table = open_table(path, schema, metadata)
    if table is not None:
        return table
    try:
        write_table(path, read(), schema.with_metadata(metadata))
    except OSError as error:
        if not is_read_only(error):
            raise
        return pa.Table.from_batches(read(), schema)
    made = open_table(path, schema, metadata)
    assert made is not None, f"{path} was written just now"
    return made


def open_table(path: Path, schema: pa.Schema, metadata: dict[bytes, bytes]) -> pa.Table | None:
    """The table of a file, memory-mapped; None if it is not there, damaged, or another one."""
    try:
        with pa.memory_map(str(path)) as file:
            table = pa.ipc.open_file(file).read_all()
    except (FileNotFoundError, pa.ArrowInvalid):
        return None
    fits = table.schema.equals(schema) and (table.schema.metadata or {}) == metadata
    return table if fits else None


def write_table(path: Path, batches: Iterable[pa.RecordBatch], schema: pa.Schema) -> None:
    """Write a table part by part; the file is whole or not there."""
    with (
        atomic_write(path) as temporary,
        pa.OSFile(str(temporary), "wb") as file,
        pa.ipc.new_file(file, schema) as writer,
    ):
        for batch in batches:
            writer.write_batch(batch)


def is_read_only(error: OSError) -> bool:
    """Whether a folder may not be written to."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)
