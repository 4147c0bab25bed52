"""Reading annotation tables (csv, tsv) into Arrow columns, with care.

Ten million rows stay a few hundred bytes each, and are never a Python object each.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
from pyarrow import csv

from video_llama.types import ConfigError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
_MISSING = ["", "nan", "NaN"]
_BLOCK_BYTES = 8 << 20


def read_tables(
    path: Path, columns: Sequence[str], *, required: Sequence[str], compact: Sequence[str] = ()
) -> pa.Table:
    """The columns of one table, or of all tables of a folder in the order of their names.

    Args:
        path: a csv or tsv file in UTF-8 with a header, or a folder of them.
        columns: to read; all must be there.
        required: those of them in which no cell may be empty (or `nan`).
        compact: those of them with few different values.

    Raises:
        ConfigError: no table, a column or a value is missing, or a file is no table; names file
            and row.
    """
    tables = [_read(file, columns, required, compact) for file in _files(path)]
    table = pa.concat_tables(tables).unify_dictionaries()
    if len(table) == 0:
        raise ConfigError(f"{path}: no rows, at least one expected below the header")
    return table


def check_unique(path: Path, column: pa.ChunkedArray, name: str) -> None:
    """Require that a column has no value twice.

    Raises:
        ConfigError: it has; names the value and its first two rows.
    """
    repeated = len(column) - pc.count_distinct(column).as_py()
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


def _read(
    file: Path, columns: Sequence[str], required: Sequence[str], compact: Sequence[str]
) -> pa.Table:
    delimiter = DELIMITERS[file.suffix.lower()]
    try:
        _check_header(file, columns, delimiter)
        table = csv.read_csv(
            file,
            read_options=csv.ReadOptions(block_size=_BLOCK_BYTES, use_threads=False),
            parse_options=csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            convert_options=csv.ConvertOptions(
                include_columns=list(columns),
                column_types={name: _type(name in compact) for name in columns},
                strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid as error:
        raise ConfigError(f"{file}: not a {file.suffix[1:]} table in UTF-8: {error}") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from error
    _check_closed(file, table)
    for name in required:
        _check_filled(file, table[name], name)
    return table


def _type(compact: bool) -> pa.DataType:
    return pa.dictionary(pa.int32(), pa.string()) if compact else pa.string()


def _check_header(file: Path, columns: Sequence[str], delimiter: str) -> None:
    options = csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
    with csv.open_csv(file, parse_options=options) as reader:
        found = reader.schema.names
    for name in columns:
        if found.count(name) != 1:
            times = "no column" if name not in found else f"{found.count(name)} columns"
            raise ConfigError(
                f"{file}:1: {times} {name!r}; found {', '.join(map(repr, found[:10]))}, "
                f"expected {', '.join(map(repr, columns))}"
            )


def _check_closed(file: Path, table: pa.Table) -> None:
    """Refuse a quote that swallowed all rows behind it."""
    last = [column[-1].as_py() for column in table.columns] if len(table) else []
    if any("\n" in cell for cell in last) and file.read_bytes().count(b'"') % 2:
        raise ConfigError(
            f"{file}: not a {file.suffix[1:]} table: the quote that opens in row {len(table)} "
            "below the header is never closed"
        )


def _check_filled(file: Path, column: pa.ChunkedArray, name: str) -> None:
    blank = pc.is_in(pc.utf8_trim_whitespace(column), pa.array(_MISSING))
    count = pc.sum(blank).as_py() or 0
    if count:
        row = pc.index(blank, True).as_py()
        raise ConfigError(
            f"{file}: row {row + 1} below the header has {name} {column[row].as_py()!r}, text "
            f"expected ({count} such rows); fill them or take them out"
        )
