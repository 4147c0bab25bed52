"""Annotation tables (csv, tsv) as Arrow columns: read with care once, memory-mapped ever after.

Ten million rows stay a few hundred bytes each, and are never a Python object each.
"""

from __future__ import annotations

import csv
import errno
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as arrow_csv

from video_llama.common.io import atomic_write
from video_llama.datasets.records import (
    MAX_LENGTH,
    MISSING,
    MediaFile,
    Record,
    Turns,
    captions_of,
    check_unique_names,
    count_missing,
    entries,
    not_utf8,
    pack_turns,
    read_json,
    refuse_device,
    text_of,
    unpack_turns,
)
from video_llama.datasets.sampling import Integers
from video_llama.types import ConfigError

DELIMITERS = {".csv": ",", ".tsv": "\t"}
BATCH_ROWS = 65536
BLOCK_BYTES = 8 << 20
"""Part of a file that is read at a time; no row may be longer."""

CACHED_BYTES = 64 << 20
"""Size of text from which tables are kept as an Arrow file."""

CACHE_VERSION = 2
"""To be raised when the same text is read in another way."""

NO_NAME = ("", "nan")
"""What stands where a name is missing; other words may be names."""

QUOTED = r'^"((?:[^"]|"")*)"$'
"""A cell of a tsv file that a program put into quotes, with those inside doubled."""


class TableRecords:
    """Items whose annotation lies in Arrow columns, not in Python objects.

    Args:
        names: columns from which `locate` makes the name of the media, such as folder and file.
        texts: captions, or conversations as `pack_turns` makes them.
        locate: from the values of `names` in a row to the item's name and its file.
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
        # Lengths are wanted in every step, for items all over the table. Here they take two bytes
        # each, where the texts themselves would have to be read from the disk.
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
        """See `Records`."""
        return self._locate(*(column[index].as_py() for column in self._names))

    def lengths(self, indices: Integers) -> Integers:
        """See `Records`."""
        sizes: Integers = self._sizes[indices].astype(np.int64)
        return sizes


def read_captions(path: Path, found: list[dict[str, Any]], key: str, **keys: Any) -> TableRecords:
    """Return the items of a JSON list with captions; keywords as in `TableRecords`.

    Raises:
        ConfigError: a name or caption is missing or no text, or a name stands twice.
    """
    names = [text_of(f"{path}: entry {number}", entry, key) for number, entry in enumerate(found)]
    captions = captions_of(path, found)
    check_unique_names(path, names, key)
    return TableRecords([_column(names)], _column(captions), **keys)


def read_conversations(
    path: Path, form: str, key: str, turns: Callable[[str, dict[str, Any]], Turns], **keys: Any
) -> TableRecords:
    """Return the items of a JSON file with conversations; keywords as in `TableRecords`.

    `turns` makes a conversation of an entry and its place, which is for messages.

    Raises:
        ConfigError: the file cannot be used.
    """
    # Names may repeat: several conversations may be about one file.
    names, texts = [], []
    for number, entry in enumerate(entries(path, read_json(path), form)):
        place = f"{path}: entry {number}"
        names.append(text_of(place, entry, key))
        texts.append(pack_turns(turns(place, entry)))
    return TableRecords([_column(names)], _column(texts), has_conversations=True, **keys)


def _column(texts: Sequence[str]) -> pa.ChunkedArray:
    # In chunks: one Arrow array of texts holds at most 2 GB.
    starts = range(0, len(texts), BATCH_ROWS)
    chunks = [pa.array(texts[start : start + BATCH_ROWS], pa.string()) for start in starts]
    return pa.chunked_array(chunks, pa.string())


def cache_folder(kind: str) -> Path:
    """Return where files of a kind are kept; `XDG_CACHE_HOME` moves it."""
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return home / "video_llama" / kind


def open_table(path: Path, schema: pa.Schema, metadata: dict[bytes, bytes]) -> pa.Table | None:
    """Map the table of a file into memory; None if it is not there, damaged, or another one."""
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
    """Return whether a folder may not be written to."""
    return error.errno in (errno.EACCES, errno.EPERM, errno.EROFS)


def read_tables(path: Path, columns: Sequence[str], *, key: str, caption: str) -> pa.Table:
    """Read the columns of one table, or of all tables of a folder in the order of their names.

    Large tables are kept, checked, as an Arrow file in the user's cache and memory-mapped: what a
    process does not look at takes no memory, and all processes of a machine share the rest.

    Args:
        path: a csv or tsv file in UTF-8 with a header, or a folder of them.
        columns: to read, as text; all must be there.
        key: the one in which no cell may be empty, and no value may stand twice.
        caption: the one in which no cell may be empty, or hold a word for that (`MISSING`).

    Raises:
        ConfigError: no table, a column or a value is missing, a value stands twice, or a file is
            no table; names file and row.
    """
    refuse_device(path)
    files = _files(path)
    for file in files:
        refuse_device(file)
    schema = pa.schema({name: pa.string() for name in columns})
    batches = partial(_batches, files, columns, {key: NO_NAME, caption: MISSING})
    if sum(file.stat().st_size for file in files) < CACHED_BYTES:
        table = pa.Table.from_batches(batches(), schema)
    else:
        table = _cached_table([str(path.absolute()), *columns], files, batches, schema)
    if len(table) == 0:
        raise ConfigError(f"{path}: no rows, at least one expected below the header")
    _check_unique(path, table[key], key)
    return table


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


def _cached_table(
    source: Sequence[str],
    files: Sequence[Path],
    batches: Callable[[], Iterable[pa.RecordBatch]],
    schema: pa.Schema,
) -> pa.Table:
    # The name says where the text lies, not in which state it is: a table that has changed takes
    # the place of its earlier self, so that the cache does not grow.
    name = blake2b("\0".join(source).encode(), digest_size=12).hexdigest()
    cached = cache_folder("tables") / f"{name}.arrow"
    state = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    metadata = {b"state": json.dumps([CACHE_VERSION, state]).encode()}
    table = open_table(cached, schema, metadata)
    if table is not None:
        return table
    try:
        write_table(cached, batches(), schema.with_metadata(metadata))
    except OSError as error:
        if not is_read_only(error):
            raise
        # A home that cannot be written to costs memory, not the run.
        return pa.Table.from_batches(batches(), schema)
    made = open_table(cached, schema, metadata)
    assert made is not None, f"{cached} was written just now"
    return made


def _check_unique(path: Path, column: pa.ChunkedArray, name: str) -> None:
    repeated = _num_repeated(column)
    if not repeated:
        return
    # Counting all values takes several times their memory: only where one is sure to repeat.
    counts = pc.value_counts(column)
    twice = counts.filter(pc.greater(counts.field("counts"), 1)).field("values")[0]
    rows = pc.indices_nonzero(pc.equal(column, twice))
    raise ConfigError(
        f"{path}: {name} {twice.as_py()!r} stands in row {rows[0].as_py() + 1} and again in row "
        f"{rows[1].as_py() + 1} (counted without headers, over all files); {repeated} rows repeat "
        "an earlier one: keep one of each"
    )


def _num_repeated(column: pa.ChunkedArray) -> int:
    try:
        # Most ids are numbers, and sorting those takes a fraction of a table of texts.
        numbers = np.sort(column.cast(pa.int64()).to_numpy())
    except pa.ArrowInvalid:
        pass
    else:
        # Equal numbers may still be different texts (7 and 007): these are compared below.
        if np.all(numbers[1:] != numbers[:-1]):
            return 0
    return len(column) - int(pc.count_distinct(column).as_py())


def _batches(
    files: Sequence[Path], columns: Sequence[str], empty: Mapping[str, Sequence[str]]
) -> Iterator[pa.RecordBatch]:
    for file in files:
        try:
            yield from _read(file, columns, empty)
        except (pa.ArrowInvalid, UnicodeDecodeError) as error:
            # Arrow says where a row begins at best: look for the likely mistakes line by line.
            what = f"a {file.suffix[1:]} table"
            if problem := not_utf8(file, what):
                raise ConfigError(problem) from error
            if file.suffix.lower() == ".csv":
                _check_quotes(file)
            raise ConfigError(f"{file}: not {what} in UTF-8: {error}") from error
        except OSError as error:
            raise ConfigError(f"{file}: cannot be read: {error.strerror or error}") from error


def _read(
    file: Path, columns: Sequence[str], empty: Mapping[str, Sequence[str]]
) -> Iterator[pa.RecordBatch]:
    tabs = file.suffix.lower() == ".tsv"
    # Quotes mean nothing in a tsv file: a cell that begins with one would swallow all rows up to
    # the next. Cells that a program quoted as a whole are unquoted below.
    parsing = arrow_csv.ParseOptions(
        delimiter=DELIMITERS[file.suffix.lower()],
        quote_char=False if tabs else '"',
        newlines_in_values=not tabs,
    )
    # Without threads, which would hold many blocks at a time. The header is read first: a column
    # that is missing or there twice is an error with its line, and a tsv header may be quoted.
    blocks = {"block_size": BLOCK_BYTES, "use_threads": False}
    rows = 0
    missing: dict[str, list[tuple[int, str]]] = {name: [] for name in empty}
    try:
        with arrow_csv.open_csv(
            file, read_options=arrow_csv.ReadOptions(**blocks), parse_options=parsing
        ) as head:
            header = [_without_quotes(name) if tabs else name for name in head.schema.names]
        _check_header(file, header, columns)
        given = {"column_names": header, "skip_rows": 1} if tabs else {}
        reader = arrow_csv.open_csv(
            file,
            read_options=arrow_csv.ReadOptions(**given, **blocks),
            parse_options=parsing,
            convert_options=arrow_csv.ConvertOptions(
                include_columns=list(columns),
                column_types={name: pa.string() for name in columns},
                strings_can_be_null=False,  # `NA` and the like are texts
            ),
        )
        for batch in reader:
            batch = _unquoted(batch) if tabs else batch
            for name, words in empty.items():
                missing[name] += _missing(batch[name], words, rows)
            rows += len(batch)
            yield batch
    except pa.ArrowInvalid as error:
        if "straddling" not in str(error):  # Arrow's word for a row that is longer than a block
            raise
        raise ConfigError(
            f"{file}: a cell is too large: below row {rows} one is longer than "
            f"{BLOCK_BYTES >> 20} MB, or a quote is never closed"
        ) from error
    if not tabs and _count_lines(file) > rows + 1:
        _check_quotes(file)
    _refuse_missing(file, missing)


def _check_header(file: Path, header: Sequence[str], columns: Sequence[str]) -> None:
    for name in columns:
        if header.count(name) != 1:
            times = "no column" if name not in header else f"{header.count(name)} columns"
            raise ConfigError(
                f"{file}:1: {times} {name!r}; found {', '.join(map(repr, header[:10]))}, "
                f"expected {', '.join(map(repr, columns))}"
            )


def _without_quotes(cell: str) -> str:
    return _unquoted(pa.record_batch({"cell": [cell]}))["cell"][0].as_py()  # type: ignore[no-any-return]


def _unquoted(batch: pa.RecordBatch) -> pa.RecordBatch:
    changed = {}
    for name in batch.schema.names:
        column = batch[name]
        quoted = pc.match_substring_regex(column, QUOTED)
        if pc.any(quoted).as_py():
            inner = pc.replace_substring_regex(column, QUOTED, r"\1")
            column = pc.if_else(quoted, pc.replace_substring(inner, '""', '"'), column)
        changed[name] = column
    return pa.record_batch(changed)


def _count_lines(file: Path) -> int:
    with file.open("rb") as content:
        return sum(block.count(b"\n") for block in iter(lambda: content.read(BLOCK_BYTES), b""))


def _check_quotes(file: Path) -> None:
    """Refuse a csv file in which a quote swallows the rows behind it, which Arrow does not notice.

    Only a file with line breaks inside cells can have one, and only such is read a second time.
    """
    csv.field_size_limit(BLOCK_BYTES)
    with file.open(encoding="utf-8-sig", newline="") as lines:
        reader = csv.reader(lines, strict=True)
        line = row = 0
        try:
            for _ in reader:
                row, line = row + 1, reader.line_num
        except csv.Error as error:
            # The reader stops where the cell should have ended; it began behind the last good row.
            raise ConfigError(
                f"{file}:{line + 1}: not a csv table: the quote that opens in row {row} below the "
                f"header is never closed, or only in line {reader.line_num}; double the quotes "
                "inside a cell and put the cell into quotes"
            ) from error


def _missing(column: pa.Array, words: Sequence[str], before: int) -> list[tuple[int, str]]:
    """Return row, counted from 1 below the header, and value of the cells without a text."""
    texts = pc.utf8_lower(pc.utf8_trim_whitespace(column))
    rows = pc.indices_nonzero(pc.is_in(texts, pa.array(words))).to_pylist()
    return [(before + row + 1, column[row].as_py()) for row in rows]


def _refuse_missing(file: Path, missing: dict[str, list[tuple[int, str]]]) -> None:
    for name, found in missing.items():
        if found:
            rows, values = [row for row, _ in found], [repr(value) for _, value in found]
            raise ConfigError(
                f"{file}: row {rows[0]} below the header has {name} {values[0]}, text expected "
                f"({count_missing('rows', values, rows)})"
            )
