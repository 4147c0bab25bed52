"""Reading webdataset tars at random, with indices that are made when there are none."""

from __future__ import annotations

import io
import json
import os
import tarfile
from pathlib import Path
from typing import Any

import pytest

from tests.data_sets import captions_of, entry, train_batches
from tests.media import write_picture
from video_llama.datasets import shards as shard_index
from video_llama.datasets import tables
from video_llama.datasets.base import BuildInfo
from video_llama.datasets.loading import make_loader
from video_llama.datasets.shards import ShardRecords, expand_shards
from video_llama.types import ConfigError, MediaError


def write_tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


def picture(folder: Path, width: int = 40) -> bytes:
    return write_picture(folder / "p.jpg", width, 30).read_bytes()


def web_tar(path: Path, count: int = 4, start: int = 0) -> Path:
    """A tar as img2dataset writes it."""
    members: dict[str, bytes] = {}
    for i in range(start, start + count):
        members[f"{i:05d}.jpg"] = picture(path.parent, 40 + i)
        members[f"{i:05d}.txt"] = b"not this"
        members[f"{i:05d}.json"] = json.dumps({"caption": f"Web {i}.", "url": "x"}).encode()
    return write_tar(path, members)


def records(*tars: Path) -> ShardRecords:
    return ShardRecords(list(tars), has_conversations=False)


@pytest.mark.parametrize("name", ["cc_sbu", "laion"])
def test_tars_of_pictures_from_the_web_train(tmp_path: Path, name: str) -> None:
    web_tar(tmp_path / "00.tar")
    web_tar(tmp_path / "01.tar", start=4, count=2)
    batches = train_batches({name: entry(name, BuildInfo(storage=f"{tmp_path}/{{00..01}}.tar"))})
    found = [batches[step] for step in (0, 1)]
    assert sorted(caption for batch in found for caption in captions_of(batch)) == [
        f"web {i}" for i in range(6)
    ]
    assert sorted(item for batch in found for item in batch.item_ids) == [
        f"{i:05d}" for i in range(6)
    ]


def test_samples_are_read_in_any_order(tmp_path: Path) -> None:
    found = records(web_tar(tmp_path / "a.tar"), web_tar(tmp_path / "b.tar", start=4))
    assert len(found) == 8
    for index in (7, 0, 4, 3, 3):
        record = found[index]
        assert record.caption == f"Web {index}."
        with record.media.open() as path:
            assert path.read_bytes() == picture(tmp_path, 40 + index)


def test_an_index_is_made_once_and_again_when_the_tar_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = web_tar(tmp_path / "a.tar")
    records(tar)
    index = tmp_path / "a.tar.index"
    before = index.read_bytes()
    monkeypatch.setattr(shard_index, "_scan", lambda tar: pytest.fail("read again"))
    assert len(records(tar)) == 4
    monkeypatch.undo()
    web_tar(tar, count=30)
    assert len(records(tar)) == 30
    assert index.read_bytes() != before


@pytest.mark.parametrize(
    "content", [b"", b"ARROW1\0\0", bytes(range(100))], ids=["empty", "cut short", "junk"]
)
def test_a_damaged_index_is_made_again(tmp_path: Path, content: bytes) -> None:
    tar = web_tar(tmp_path / "a.tar")
    (tmp_path / "a.tar.index").write_bytes(content)
    assert len(records(tar)) == 4


def test_an_index_of_a_folder_that_cannot_be_written_goes_to_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar = web_tar(tmp_path / "a.tar")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    real = tables.atomic_write

    def read_only(path: Path) -> Any:
        if path.parent == tmp_path:
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(tables, "atomic_write", read_only)
    assert len(records(tar)) == 4
    assert not (tmp_path / "a.tar.index").exists()
    (cached,) = (tmp_path / "cache/video_llama/shards").iterdir()
    assert cached.suffix == ".index"
    monkeypatch.setattr(shard_index, "_scan", lambda tar: pytest.fail("read again"))
    assert len(records(tar)) == 4


def test_samples_that_lack_something_can_be_replaced(tmp_path: Path) -> None:
    jpg = picture(tmp_path)
    members = {
        "0.jpg": jpg,
        "0.json": b'{"caption": "good"}',
        "1.jpg": jpg,
        "2.json": b'{"caption": "no picture"}',
        "3.jpg": jpg,
        "3.json": b'{"caption": null}',
        "4.jpg": jpg,
        "4.json": b"not json",
        "5.json": b"[1]",
        "5.jpg": b"",
    }
    found = records(write_tar(tmp_path / "a.tar", members))
    assert len(found) == 6
    assert found[0].caption == "good"
    for index, reason in ((1, "lacks this part"), (3, "no 'caption'"), (4, "no 'caption'")):
        with pytest.raises(MediaError, match=reason) as caught:
            found[index]
        assert f"a.tar/{index}" in str(caught.value)
    with pytest.raises(MediaError, match="lacks this part"), found[2].media.open():
        pass
    settings = {"cc_sbu": entry("cc_sbu", BuildInfo(storage=str(tmp_path / "a.tar")))}
    batch = train_batches(settings, batch_size=6)[0]
    assert captions_of(batch) == ["good"] * 6
    assert {item.item_id for item in batch.bad_items} == set("12345")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "cannot be read as an uncompressed tar"),
        (b"not a tar" * 200, "cannot be read as an uncompressed tar"),
        (b"\x1f\x8b" + bytes(600), "cannot be read as an uncompressed tar"),
        (bytes(10240), "no samples in it"),
    ],
)
def test_what_is_no_tar_is_an_error(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "a.tar").write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        records(tmp_path / "a.tar")


def test_a_tar_that_was_cut_short_is_an_error(tmp_path: Path) -> None:
    tar = web_tar(tmp_path / "a.tar")
    tar.write_bytes(tar.read_bytes()[:1300])
    with pytest.raises(ConfigError, match=r"a\.tar: cannot be read as an uncompressed tar"):
        records(tar)


@pytest.mark.parametrize("size", [2**62, 2**80, -5, 10_000])
@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_with_a_made_up_size_is_an_error(tmp_path: Path, size: int, kind: bytes) -> None:
    header = tarfile.TarInfo("0.jpg")
    header.size, header.type = size, kind
    tar = tmp_path / "a.tar"
    tar.write_bytes(header.tobuf(tarfile.GNU_FORMAT) + bytes(2048))
    with pytest.raises(ConfigError, match=r"a\.tar: cannot be read as an uncompressed") as caught:
        records(tar)
    if kind == tarfile.REGTYPE:
        assert f"0.jpg has {size} bytes by its header" in str(caught.value)


@pytest.mark.parametrize("pattern", ["{0..99999999}", "{0..9999}{0..9999}", "{a,b}" * 40])
def test_a_pattern_of_millions_of_tars_is_refused_at_once(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"stands for \d+ tars, at most 1000000 expected"):
        expand_shards(f"{pattern}.tar")


@pytest.mark.parametrize("pattern", ["{0..1", "{0.." + "9" * 5000 + "}"])
def test_a_pattern_that_cannot_be_expanded_is_an_error(pattern: str) -> None:
    with pytest.raises(ConfigError, match=r"build_info\.storage: .* given: "):
        expand_shards(f"{pattern}.tar")


def test_a_tar_that_is_cut_short_while_it_is_read_loses_samples_only(tmp_path: Path) -> None:
    tar = web_tar(tmp_path / "a.tar")
    found = records(tar)
    tar.write_bytes(tar.read_bytes()[:4000])
    with pytest.raises(MediaError, match="the tar ends before the sample does"):
        found[3]
    tar.unlink()
    with pytest.raises(MediaError, match="the tar cannot be read"):
        found[0]


def test_patterns_name_tars_in_order(tmp_path: Path) -> None:
    for name in ("b.tar", "a.tar", "10.tar", "09.tar"):
        (tmp_path / name).write_bytes(b"")
    assert [p.name for p in expand_shards(f"{tmp_path}/*.tar")] == [
        *("09.tar", "10.tar"),
        *("a.tar", "b.tar"),
    ]
    assert [p.name for p in expand_shards(f"{tmp_path}/{{09..10}}.tar")] == ["09.tar", "10.tar"]
    with pytest.raises(ConfigError, match=r"2 of its tars are missing, first .*/11\.tar"):
        expand_shards(f"{tmp_path}/{{09..12}}.tar")
    with pytest.raises(ConfigError, match="no tar has such a name"):
        expand_shards(f"{tmp_path}/x*.tar")


@pytest.mark.parametrize("size", [0, 100, -8])
def test_an_index_that_is_cut_while_it_is_mapped_is_an_error_that_names_the_tar(
    tmp_path: Path, size: int
) -> None:
    tars = [web_tar(tmp_path / "a.tar", count=50), web_tar(tmp_path / "b.tar", start=4)]
    found = records(*tars)
    index = tmp_path / "a.tar.index"
    os.truncate(index, size if size >= 0 else index.stat().st_size + size)
    for number in (0, 49):
        with pytest.raises(ConfigError, match=r"a\.tar: its index .*a\.tar\.index was changed"):
            found[number]
    assert found[50].caption == "Web 4."
    assert records(*tars)[49].caption == "Web 49.", "a damaged index is made again"


def test_an_index_that_is_deleted_or_made_again_does_no_harm(tmp_path: Path) -> None:
    found = records(web_tar(tmp_path / "a.tar"))
    (tmp_path / "a.tar.index").unlink()
    assert found[3].caption == "Web 3."
    records(tmp_path / "a.tar")
    assert found[3].caption == "Web 3."


def test_a_run_over_a_tar_that_is_cut_goes_on_and_lists_the_samples(tmp_path: Path) -> None:
    tar = web_tar(tmp_path / "a.tar", count=6)
    settings = {"cc_sbu": entry("cc_sbu", BuildInfo(storage=str(tar)))}
    batches = train_batches(settings, batch_size=6)
    os.truncate(tar, tar.stat().st_size // 2)
    (batch,) = make_loader(batches, start=0, stop=1, num_workers=1)
    assert batch.bad_items
    assert all("a.tar/0000" in item.path for item in batch.bad_items)
    assert {item.reason for item in batch.bad_items} == {"the tar ends before the sample does"}
    assert len(batch.item_ids) == 6


@pytest.mark.parametrize("value", ["None", " null ", "N/A", "nan", "", None, 3, ["a"]])
def test_a_sample_without_a_caption_is_a_bad_item(tmp_path: Path, value: object) -> None:
    members = {"0.jpg": picture(tmp_path), "0.json": json.dumps({"caption": value}).encode()}
    found = records(write_tar(tmp_path / "a.tar", members))
    with pytest.raises(MediaError, match="the JSON of the sample has no 'caption'"):
        found[0]


@pytest.mark.parametrize("value", [None, 3, "ab", [], [3], [["a"]], {"a": 1}, [["a", "b", "c"]]])
def test_a_sample_without_a_conversation_is_a_bad_item(tmp_path: Path, value: object) -> None:
    members = {"0.jpg": picture(tmp_path), "0.json": json.dumps({"turns": value}).encode()}
    tar = write_tar(tmp_path / "a.tar", members)
    with pytest.raises(MediaError, match="the JSON of the sample has no 'turns'"):
        ShardRecords([tar], has_conversations=True)[0]
