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


@pytest.mark.parametrize("suffix", ["csv", "tsv"])
@pytest.mark.parametrize(
    ("encoding", "text", "advice"),
    [
        ("gb18030", "一只狗在雪地里跑", "it looks like GBK: convert it with iconv -f GB18030"),
        ("gb18030", "两个孩子, two children 在玩", "it looks like GBK"),
        ("cp1252", "café au lait on a table, naïve", "save it as UTF-8"),
        ("cp1251", "собака бежит по снегу зимой", "save it as UTF-8"),
        ("shift_jis", "犬が雪の中を走る様子", "save it as UTF-8|looks like"),
    ],
)
def test_another_encoding_is_named_with_the_line(
    tmp_path: Path, suffix: str, encoding: str, text: str, advice: str
) -> None:
    path, delimiter = tmp_path / f"a.{suffix}", "," if suffix == "csv" else "\t"
    rows = [("id", "text"), (1, "plain"), (2, "plain"), (3, text), (4, text)]
    write_table(path, rows, delimiter=delimiter)
    path.write_bytes(path.read_text("utf-8").encode(encoding))
    with pytest.raises(
        ConfigError, match=rf"a\.{suffix}:4: not a {suffix} table in UTF-8: byte 0x"
    ):
        read(path)
    with pytest.raises(ConfigError, match=advice):
        read(path)


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be", "utf-16-le"])
def test_a_utf_16_table_is_an_error_that_says_so(tmp_path: Path, encoding: str) -> None:
    text = "\ufeffid\ttext\n1\ta\n" if encoding != "utf-16" else "id\ttext\n1\ta\n"
    (tmp_path / "a.tsv").write_bytes(text.encode(encoding))
    with pytest.raises(ConfigError, match=r"a\.tsv.*UTF-16"):
        read(tmp_path / "a.tsv")


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_quotes_in_a_tsv_file_are_text(tmp_path: Path, mark: bytes) -> None:
    """Conceptual Captions has such cells; read as csv, each swallows the rows up to the next."""
    texts = ['" a lone quote', "plain", 'ends with one "', '"', 'says "no" twice', '5" pipe', "'"]
    rows = "".join(f"{number}\t{text}\n" for number, text in enumerate(texts))
    (tmp_path / "a.tsv").write_bytes(mark + f"id\ttext\n{rows}".encode())
    assert [row["text"] for row in read(tmp_path / "a.tsv")] == texts
    (tmp_path / "a.tsv").write_bytes(mark + f"text\tid\r\n{rows}".replace("\n", "\r\n").encode())
    assert [row["id"] for row in read(tmp_path / "a.tsv")] == texts


def test_cells_that_a_program_quoted_as_a_whole_are_unquoted(tmp_path: Path) -> None:
    texts = ['she said "no"', "plain", '"', '""', "", "a, b"]
    rows = [("id", "text"), *((n, text or "x") for n, text in enumerate(texts))]
    path = write_table(tmp_path / "a.tsv", rows, delimiter="\t")
    assert [row["text"] for row in read(path)] == [text or "x" for text in texts]
    path.write_text('"id"\t"text"\n"1"\t"as R writes it"\n')
    assert read(path) == [{"id": "1", "text": "as R writes it"}]


def test_a_line_break_in_a_tsv_cell_is_an_error_with_its_row(tmp_path: Path) -> None:
    path = write_table(tmp_path / "a.tsv", [("id", "text"), (1, "two\nlines")], delimiter="\t")
    with pytest.raises(ConfigError, match=r"a\.tsv: not a tsv table.*Row #3: Expected 2 columns"):
        read(path)


@pytest.mark.parametrize(
    ("rows", "line"),
    [
        ('1,a\n2," a lone quote\n3,b\n4," another\n5,c\n', 3),
        ('1,a\n2,b\n3,"swallows\n4,"quoted"\n', 4),
        ('1,"fine, too"\n2,"line\nbreak"\n3," lone\n4,x\n5,"y", z\n', 5),
        ('1,"never closed\n2,b\n', 2),
    ],
)
def test_a_quote_in_a_csv_file_swallows_no_rows(tmp_path: Path, rows: str, line: int) -> None:
    (tmp_path / "a.csv").write_text(f"id,text\n{rows}")
    with pytest.raises(ConfigError, match=rf"a\.csv:{line}: not a csv table: the quote that opens"):
        read(tmp_path / "a.csv")


def test_words_for_a_missing_caption_are_counted(tmp_path: Path) -> None:
    words = ["None", "null", "N/A", "nan", "", "  NULL ", "None", "n/a", "NaN"]
    good = ["none of them moves", "NA", "a null hypothesis", "Nano"]
    rows = [("id", "text"), *enumerate([*good, *words, *good])]
    path = write_table(tmp_path / "a.csv", rows)
    expected = (
        r"a\.csv: row 5 below the header has text 'None', text expected \(9 such rows: 5, 6, 7, 8, "
        r"9, \.\.\.; 'None' 2 x, 'null' 1 x, 'N/A' 1 x, 'nan' 1 x, '' 1 x, .*; fill them"
    )
    with pytest.raises(ConfigError, match=expected):
        read(path)
    write_table(path, [("id", "text"), *((f"null{n}", text) for n, text in enumerate(good))])
    assert [row["text"] for row in read(path)] == good
    write_table(path, [("id", "text"), ("None", "a clip of that name")])
    assert read(path)[0]["id"] == "None"
