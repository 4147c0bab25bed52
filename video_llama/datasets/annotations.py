"""What an annotation is read from.

Arrow files in the user's cache: read once, memory-mapped ever after.

Reading annotation files in JSON, with care: what is wrong is named with its place.

Reading annotation tables (csv, tsv) into Arrow columns, with care.

Ten million rows stay a few hundred bytes each, and are never a Python object each.
"""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from video_llama.common.io import atomic_write
from video_llama.text.tokenizer import clean_text
from video_llama.types import ConfigError


def refuse_device(path: Path) -> None:
    """Refuse what is neither a file nor a folder: reading it might never end.

    What cannot be looked at is left to whoever opens it.

    Raises:
        ConfigError: it is a pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ConfigError(f"{path}: a pipe or a device given, an annotation file expected")


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


BATCH_ROWS = 65536


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        ConfigError: there is no such file, or it is not JSON in UTF-8; names the line.
    """
    refuse_device(path)
    if path.is_dir():
        raise ConfigError(f"{path}: a folder given, a JSON file expected")
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deep for an annotation") from error
    except ValueError as error:  # not UTF-8, or a number with thousands of digits
        raise ConfigError(f"{path}: not JSON in UTF-8: {error}") from error


def entries(path: Path, value: Any, expected: str) -> list[dict[str, Any]]:
    """The value as a list of objects, at least one.

    Args:
        path: of the file, for messages.
        value: what was read.
        expected: form of the list, for messages.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(value, list):
        raise ConfigError(f"{path}: {_kind(value)} found, {expected} expected")
    if not value:
        raise ConfigError(f"{path}: the list is empty, {expected} expected")
    for number, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise ConfigError(f"{path}: entry {number} is {_kind(entry)}, {expected} expected")
    return value


def text_of(place: str, entry: dict[str, Any], key: str, *, filled: bool = True) -> str:
    """A text of an object, without lone surrogates.

    Args:
        place: of the object, for messages: `file: entry 3`.
        entry: the object.
        key: of the text.
        filled: whether it must hold more than white space.

    Raises:
        ConfigError: it is missing, something else, or empty.
    """
    if key not in entry:
        raise ConfigError(f"{place} has no {key!r}; found {', '.join(map(repr, entry)) or 'none'}")
    value = entry[key]
    if not isinstance(value, str) or (filled and not value.strip()):
        raise ConfigError(f"{place}: {key} is {_kind(value)}, text expected")
    return clean_text(value)


def check_unique_names(path: Path, names: Sequence[str], key: str) -> None:
    """Require that no name stands twice.

    Raises:
        ConfigError: one does; names both entries.
    """
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        if first.setdefault(name, number) != number:
            raise ConfigError(
                f"{path}: {key} {name!r} stands in entry {first[name]} and again in entry "
                f"{number}: keep one"
            )


def column(texts: Sequence[str]) -> pa.ChunkedArray:
    """Texts as an Arrow column."""
    starts = range(0, len(texts), BATCH_ROWS)
    chunks = [pa.array(texts[start : start + BATCH_ROWS], pa.string()) for start in starts]
    return pa.chunked_array(chunks, pa.string())


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return repr(value) if len(value) < 40 else f"{value[:40]!r}..."
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return json.dumps(value)


DELIMITERS = {".csv": ",", ".tsv": "\t"}
_MISSING = ["", "nan", "NaN"]
_BLOCK_BYTES = 8 << 20

CACHED_BYTES = 64 << 20
"""Size of text from which tables are kept as an Arrow file."""


def read_tables(path: Path, columns: Sequence[str], *, filled: Sequence[str], key: str) -> pa.Table:
    """The columns of one table, or of all tables of a folder in the order of their names.

    Large tables are kept, checked, as an Arrow file in the user's cache and memory-mapped: what a
    process does not look at takes no memory, and all processes of a machine share the rest.

    Args:
        path: a csv or tsv file in UTF-8 with a header, or a folder of them.
        columns: to read, as text; all must be there.
        filled: those of them in which no cell may be empty (or `nan`).
        key: the one in which no value may stand twice.

    Raises:
        ConfigError: no table, a column or a value is missing, a value stands twice, or a file is
            no table; names file and row.
    """
    refuse_device(path)
    files = _files(path)
    for file in files:
        refuse_device(file)
    schema = pa.schema({name: pa.string() for name in columns})
    if sum(file.stat().st_size for file in files) < CACHED_BYTES:
        table = pa.Table.from_batches(_batches(files, columns, filled), schema)
    else:
        table = cached_table(
            [str(path.absolute()), *columns],
            [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files],
            lambda: _batches(files, columns, filled),
            schema,
        )
    if len(table) == 0:
        raise ConfigError(f"{path}: no rows, at least one expected below the header")
    check_unique(path, table[key], key)
    return table


def check_unique(path: Path, column: pa.ChunkedArray, name: str) -> None:
    """Require that a column has no value twice.

    Raises:
        ConfigError: it has; names the value and its first two rows.
    """
    repeated = _num_repeated(column)
    if not repeated:
        return
    counts = pc.value_counts(column)
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")[0]
    rows = pc.indices_nonzero(pc.equal(column, twice))
    raise ConfigError(
        f"{path}: {name} {twice.as_py()!r} stands in row {rows[0].as_py() + 1} and again in row "
        f"{rows[1].as_py() + 1} (counted without headers, over all files); {repeated} rows repeat "
        "an earlier one: keep one of each"
    )


def _num_repeated(column: pa.ChunkedArray) -> int:
    """How many values are the repetition of another one."""
    try:
        # Most ids are numbers, and sorting those takes a fraction of a table of texts.
        numbers = np.sort(column.cast(pa.int64()).to_numpy())
    except pa.ArrowInvalid:
        pass
    else:
        if np.all(numbers[1:] != numbers[:-1]):
            return 0
    return len(column) - int(pc.count_distinct(column).as_py())


def _files(path: Path) -> list[Path]:
    if path.is_file() and path.suffix.lower() in DELIMITERS:
        return [path]
    if path.is_dir():
        found = sorted(file for file in path.iterdir() if file.suffix.lower() in DELIMITERS)
        if found:
            return found
        names = sorted(file.name for file in path.iterdir())[:5]
        raise ConfigError(f"{path}: no .csv or .tsv file in it; it holds {names or 'nothing'}")
    what = f"a {path.suffix or 'nameless'} file" if path.is_file() else "there is no such path"
    raise ConfigError(f"{path}: {what}; a .csv or .tsv file, or a folder of them, expected")


def _batches(
    files: Sequence[Path], columns: Sequence[str], filled: Sequence[str]
) -> Iterator[pa.RecordBatch]:
    for file in files:
        try:
            yield from _read(file, columns, filled)
        except pa.ArrowInvalid as error:
            _refuse_large_cell(file, error)
            kind = file.suffix[1:]
            raise ConfigError(f"{file}: not a {kind} table in UTF-8: {error}") from error
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from error


def _read(file: Path, columns: Sequence[str], filled: Sequence[str]) -> Iterator[pa.RecordBatch]:
    delimiter = DELIMITERS[file.suffix.lower()]
    _check_header(file, columns, delimiter)
    reader = csv.open_csv(
        file,
        read_options=csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
        parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
        convert_options=csv.ConvertOptions(
            include_columns=list(columns),
            column_types={name: pa.string() for name in columns},
            strings_can_be_null=False,
        ),
    )
    rows, last = 0, None
    try:
        for batch in reader:
            for name in filled:
                _check_filled(file, batch[name], name, rows)
            rows, last = rows + len(batch), batch
            yield batch
    except pa.ArrowInvalid as error:
        _refuse_large_cell(file, error, rows)
        raise
    if last is not None:
        _check_closed(file, last, rows)


def _refuse_large_cell(file: Path, error: pa.ArrowInvalid, rows: int = 0) -> None:
    """Say in words what Arrow calls an object that straddles two blocks."""
    if "straddling" in str(error):
        raise ConfigError(
            f"{file}: a cell is too large: below row {rows} one is longer than "
            f"{_BLOCK_BYTES >> 20} MB, or a quote is never closed"
        ) from error


def _check_header(file: Path, columns: Sequence[str], delimiter: str) -> None:
    options = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    blocks = csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False)
    with csv.open_csv(file, read_options=blocks, parse_options=options) as reader:
        found = reader.schema.names
    for name in columns:
        if found.count(name) != 1:
            times = "no column" if name not in found else f"{found.count(name)} columns"
            raise ConfigError(
                f"{file}:1: {times} {name!r}; found {', '.join(map(repr, found[:10]))}, "
                f"expected {', '.join(map(repr, columns))}"
            )


def _check_closed(file: Path, batch: pa.RecordBatch, rows: int) -> None:
    """Refuse a quote that swallowed all rows behind it."""
    last = [column[-1].as_py() for column in batch.columns] if len(batch) else []
    if any("\n" in cell for cell in last) and file.read_bytes().count(b'"') % 2:
        raise ConfigError(
            f"{file}: not a {file.suffix[1:]} table: the quote that opens in row {rows} below the "
            "header is never closed"
        )


def _check_filled(file: Path, column: pa.Array, name: str, before: int) -> None:
    blank = pc.is_in(pc.utf8_trim_whitespace(column), pa.array(_MISSING))
    count = pc.sum(blank).as_py() or 0
    if count:
        row = pc.index(blank, True).as_py()
        raise ConfigError(
            f"{file}: row {before + row + 1} below the header has {name} {column[row].as_py()!r}, "
            f"text expected ({count} such rows in this part); fill them or take them out"
        )
