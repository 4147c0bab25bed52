"""Reading annotation tables (csv, tsv) into Arrow columns, with care.

Ten million rows stay a few hundred bytes each, and are never a Python object each.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from video_llama.datasets.annotation_files import refuse_device
from video_llama.datasets.arrow_files import cached_table
from video_llama.types import ConfigError

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
