from __future__ import annotations

import gc
from pathlib import Path

import numpy as np
import pytest

from tests.data_sets import write_table
from video_llama.datasets import tables
from video_llama.datasets.base import SplitInfo
from video_llama.datasets.tables import TableRecords, read_tables
from video_llama.datasets.webvid import WebvidSettings
from video_llama.types import ConfigError

HEAD = "videoid,page_dir,name\n"


def read(path: Path) -> list[dict[str, str]]:
    rows: list[dict[str, str]] = read_tables(
        path, ["id", "text"], key="id", caption="text"
    ).to_pylist()
    return rows


def test_files_of_a_folder_are_read_in_the_order_of_their_names(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv", "c.tsv"):
        delimiter = "\t" if name.endswith("tsv") else ","
        write_table(tmp_path / name, [("text", "id"), (f"of {name}", name)], delimiter=delimiter)
    (tmp_path / "notes.txt").write_text("not a table")
    assert [row["id"] for row in read(tmp_path)] == ["a.csv", "b.csv", "c.tsv"]


def test_cells_may_hold_delimiters_quotes_and_line_breaks(tmp_path: Path) -> None:
    texts = ["a, b", 'she said "no"', "two\nlines", "  spaces  ", "ünï 狗 \U0001f600", "NA", "-"]
    rows = [("id", "text"), *enumerate(texts)]
    assert [r["text"] for r in read(write_table(tmp_path / "a.csv", rows))] == texts


def test_other_columns_the_byte_order_mark_and_windows_line_ends_do_not_matter(
    tmp_path: Path,
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(b"\xef\xbb\xbfid,duration,text\r\n007,PT1S,seven\r\n")
    assert read(path) == [{"id": "007", "text": "seven"}]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "not a csv table"),
        (b"id,text\n", "no rows"),
        (b"id,name\n1,a\n", r"a\.csv:1: no column 'text'; found 'id', 'name', expected"),
        (b"id,text,text\n1,a,b\n", "2 columns 'text'"),
        (b"id,text\n1,a\n2,\n", r"row 2 below the header has text '', text expected \(1 such"),
        (b"id,text\n1,nan\n2,NaN\n", r"row 1 below the header has text 'nan'.* \(2 such"),
        (b"id,text\n1,   \n", "row 1"),
        (b"id,text\n1,a\n2,b,c\n", r"Row #3: Expected 2 columns, got 3"),
        (b"id,text\n1,\xff\xfe\n", "not a csv table in UTF-8"),
        (b'id,text\n1,"never closed\n2,b\n', "quote that opens in row 1"),
        (b"id,text\n5,a\n6,b\n5,c\n", "id '5' stands in row 1 and again in row 3"),
        (bytes(range(256)) * 40, "not a csv table|no column"),
        (b"PK\x03\x04" + bytes(500), "not a csv table|no column"),
    ],
)
def test_a_bad_table_is_an_error_with_its_place(
    tmp_path: Path, content: bytes, message: str
) -> None:
    path = tmp_path / "a.csv"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as caught:
        read(path)
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("before", [0, 400])
def test_a_cell_that_is_too_large_is_named_with_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: int
) -> None:
    monkeypatch.setattr(tables, "BLOCK_BYTES", 1 << 20)
    rows = [("id", "text"), *((number, "x" * 9000) for number in range(before))]
    path = write_table(tmp_path / "a.csv", [*rows, ("large", "x" * (3 << 20)), ("z", "z")])
    with pytest.raises(
        ConfigError, match=r"a\.csv: a cell is too large: below row (\d+) "
    ) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert ("below row 0 " in str(caught.value)) == (before == 0)


def test_duplicates_are_found_across_files(tmp_path: Path) -> None:
    write_table(tmp_path / "a.csv", [("id", "text"), (1, "a"), (2, "b")])
    write_table(tmp_path / "b.csv", [("id", "text"), (3, "a"), (1, "b")])
    with pytest.raises(ConfigError, match="'1' stands in row 1 and again in row 4"):
        read(tmp_path)


@pytest.mark.parametrize("name", ["missing", "missing.csv", "notes.txt"])
def test_a_path_without_a_table_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(ConfigError, match=r"a \.csv or \.tsv file, or a folder of them, expected"):
        read(tmp_path / name)


def test_a_folder_without_tables_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "clip.mp4").write_text("x")
    with pytest.raises(ConfigError, match=r"no .csv or .tsv file in it; it holds \['clip.mp4'\]"):
        read(tmp_path)


def test_a_large_annotation_is_no_python_objects(tmp_path: Path) -> None:
    rows = 100_000
    caption = "a caption of average length about something that happens somewhere"
    lines = [f"{i},{i // 50:06d}_{i // 50:06d},{caption} {i}\n" for i in range(rows)]
    (tmp_path / "a.csv").write_text(HEAD + "".join(lines))
    del lines
    gc.collect()
    before = len(gc.get_objects())
    info = SplitInfo(anno_dir=str(tmp_path / "a.csv"), videos_dir=str(tmp_path))
    records = WebvidSettings().read(info)
    gc.collect()
    assert len(gc.get_objects()) - before < 1000
    assert records[rows - 1].caption == f"{caption} {rows - 1}"
    assert records.lengths(np.array([0, rows - 1])).tolist() == [len(caption) + 2, len(caption) + 6]
    assert isinstance(records, TableRecords)
    size = sum(column.nbytes for column in (records._texts, *records._names))
    assert size / rows < len(caption) + 40


def test_a_large_table_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "CACHED_BYTES", 0)
    monkeypatch.setattr(tables, "BLOCK_BYTES", 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [("id", "text"), *((number, f"text {number}") for number in range(1, 500))]
    path = write_table(tmp_path / "a.csv", rows)
    first = read(path)
    assert len(first) == 499
    (cached,) = (tmp_path / "cache/video_llama/tables").iterdir()
    monkeypatch.setattr(tables, "_batches", lambda *_: pytest.fail("read again"))
    assert read(path) == first
    monkeypatch.undo()
    monkeypatch.setattr(tables, "CACHED_BYTES", 0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    cached.write_bytes(cached.read_bytes()[:900])
    assert read(path) == first
    write_table(path, [*rows, ("x", "more")])
    assert len(read(path)) == 500
    assert len(list(cached.parent.iterdir())) == 1


def test_a_large_table_with_a_mistake_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "CACHED_BYTES", 0)
    monkeypatch.setattr(tables, "BLOCK_BYTES", 1000)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    rows = [("id", "text"), *((number, "text") for number in range(1, 500)), ("x", "")]
    path = write_table(tmp_path / "a.csv", rows)
    with pytest.raises(ConfigError, match="row 500 below the header has text ''"):
        read(path)
    assert not list((tmp_path / "cache").rglob("*.arrow"))
    for repeated in (499, "0499", "x"):
        write_table(path, [*rows[:-1], ("0499", "y"), ("x", "z"), (repeated, "again")])
        with pytest.raises(ConfigError, match=f"id '{repeated}' stands in row"):
            read(path)


def test_without_a_cache_a_large_table_is_read_into_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "CACHED_BYTES", 0)

    def refuse(path: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tables, "atomic_write", refuse)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = write_table(tmp_path / "a.csv", [("id", "text"), (1, "a")])
    assert read(path) == [{"id": "1", "text": "a"}]
