"""Features are kept whole, found by everybody, and never taken for those of something else."""

from __future__ import annotations

import errno
import multiprocessing
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from safetensors.torch import load_file, save_file

from video_llama.datasets import features as feature_cache
from video_llama.datasets.features import FeatureCache, Features
from video_llama.types import ConfigError

KEY = {"weights": "abc", "embed_dim": 8}


def name(number: int) -> str:
    return f"{number:016x}{0:016x}"


def features(number: int) -> Features:
    values = torch.full((2, 3, 4), float(number), dtype=torch.float16)
    return Features(values, [0.1 * number, 1.0])


def is_kept(cache: FeatureCache, number: int) -> bool:
    found = cache.find(name(number))
    if found is None:
        return False
    assert torch.equal(found.values, features(number).values)
    assert found.values.dtype == torch.float16
    assert list(found.seconds) == features(number).seconds
    return True


def fill(folder: Path, numbers: list[int]) -> None:
    cache = FeatureCache(folder, KEY)
    for number in numbers:
        cache.put(name(number), features(number))
        assert is_kept(cache, number)
    cache.flush()
    assert is_kept(cache, numbers[0])


def test_what_is_kept_is_found_later_and_nothing_else(tmp_path: Path) -> None:
    fill(tmp_path, [1, 2])
    fill(tmp_path, [3])
    cache = FeatureCache(tmp_path, KEY)
    assert len(cache) == 3
    assert [is_kept(cache, number) for number in range(5)] == [False, True, True, True, False]


def test_two_keys_with_the_same_beginning_are_told_apart(tmp_path: Path) -> None:
    fill(tmp_path, [1])
    other = f"{1:016x}{7:016x}"
    cache = FeatureCache(tmp_path, KEY)
    assert cache.find(other) is None
    cache.put(other, features(9))
    cache.flush()
    found = FeatureCache(tmp_path, KEY).find(other)
    assert found is not None
    assert float(found.values.max()) == 9
    assert is_kept(FeatureCache(tmp_path, KEY), 1)


def test_an_open_cache_finds_what_another_process_writes(tmp_path: Path) -> None:
    reader = FeatureCache(tmp_path, KEY)
    assert not is_kept(reader, 1)
    fill(tmp_path, [1])
    assert is_kept(reader, 1)


def test_many_processes_write_one_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    jobs = [(tmp_path, list(range(start, start + 40))) for start in (0, 20, 40, 60)]
    writers = [context.Process(target=fill, args=job) for job in jobs]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    assert [writer.exitcode for writer in writers] == [0] * 4
    cache = FeatureCache(tmp_path, KEY)
    assert all(is_kept(cache, number) for number in range(100))


def test_features_of_something_else_are_refused(tmp_path: Path) -> None:
    fill(tmp_path, [1])
    with pytest.raises(ConfigError, match=r"another weights \(weights: abc there, xyz now\)"):
        FeatureCache(tmp_path, {**KEY, "weights": "xyz"})
    assert is_kept(FeatureCache(tmp_path, dict(KEY)), 1)


def test_a_writer_that_dies_leaves_no_shard(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(tensors: dict[str, Any], path: Path) -> None:
        path.write_bytes(b"half of a shard")
        raise KeyboardInterrupt

    cache = FeatureCache(tmp_path, KEY)
    cache.put(name(1), features(1))
    with monkeypatch.context() as patch:
        patch.setattr(feature_cache, "save_file", die)
        with pytest.raises(KeyboardInterrupt):
            cache.flush()
    assert [path.name for path in tmp_path.iterdir()] == ["key.json"]
    cache.flush()
    assert is_kept(FeatureCache(tmp_path, KEY), 1)


def test_a_long_run_writes_before_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feature_cache, "FEWEST_BYTES", 2 * features(0).values.nbytes)
    cache = FeatureCache(tmp_path, KEY)
    for number in range(5):
        cache.put(name(number), features(number))
    later = FeatureCache(tmp_path, KEY)
    assert [is_kept(later, number) for number in range(5)] == [True] * 4 + [False]


def test_items_that_come_again_are_written_however_few_there_are(tmp_path: Path) -> None:
    """Else data workers, who see the disk only, decode a small set in every epoch."""
    cache, worker = FeatureCache(tmp_path, KEY), FeatureCache(tmp_path, KEY)
    cache.put(name(1), features(1))
    assert not is_kept(worker, 1)
    for _ in range(feature_cache.MOST_IN_VAIN):
        assert is_kept(cache, 1)
    assert is_kept(worker, 1)
    assert is_kept(cache, 1)


def test_a_damaged_shard_is_named(tmp_path: Path) -> None:
    fill(tmp_path, [1])
    (shard,) = tmp_path.glob("*.safetensors")
    shard.write_bytes(shard.read_bytes()[:-9])
    with pytest.raises(ConfigError, match=f"{shard.name} is damaged .*; delete it"):
        FeatureCache(tmp_path, KEY)


def damage(shard: Path, change: Callable[[bytes], bytes]) -> None:
    shard.write_bytes(change(shard.read_bytes()))


def flipped(content: bytes, place: int) -> bytes:
    return content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :]


@pytest.mark.parametrize("place", [-1, -40, -60, -110, -134])
def test_changed_bits_are_computed_again_with_one_warning(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, place: int
) -> None:
    """Values lie at the end, times before them, checksums before those."""
    fill(tmp_path, [1, 2])
    (shard,) = tmp_path.glob("*.safetensors")
    damage(shard, lambda content: flipped(content, place))
    cache = FeatureCache(tmp_path, KEY)
    found = [cache.find(name(number)) for number in (1, 2, 1, 2)]
    lost = [number for number, features in zip((1, 2), found, strict=False) if features is None]
    assert len(lost) == 1, "the other item is as good as before"
    assert caplog.text.count(f"{shard.name} is damaged (its bytes have changed") == 1
    cache.put(name(lost[0]), features(lost[0]))
    cache.flush()
    assert all(is_kept(FeatureCache(tmp_path, KEY), number) for number in (1, 2))


@pytest.mark.parametrize("change", ["shape", "frames", "times", "swap"])
def test_features_of_another_shape_or_item_are_not_taken(tmp_path: Path, change: str) -> None:
    fill(tmp_path, [1, 2])
    (shard,) = tmp_path.glob("*.safetensors")
    tensors, one, two = load_file(shard), name(1), name(2)
    if change == "shape":
        tensors[one] = tensors[one].reshape(3, 2, 4)
    elif change == "frames":
        tensors[one] = tensors[one][:1].contiguous()
    elif change == "times":
        tensors[one + ".seconds"] += 0.5
    else:
        tensors[one], tensors[two] = tensors[two], tensors[one]
    save_file(tensors, shard)
    cache = FeatureCache(tmp_path, KEY)
    assert cache.find(one) is None
    assert is_kept(cache, 2) == (change != "swap")


def test_a_shard_that_is_cut_while_it_is_used_loses_items_and_not_the_process(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, [1, 2])
    cache = FeatureCache(tmp_path, KEY)
    (shard,) = tmp_path.glob("*.safetensors")
    os.truncate(shard, shard.stat().st_size - 1)
    assert is_kept(cache, 1)
    assert cache.find(name(2)) is None
    os.truncate(shard, 10)
    assert cache.find(name(1)) is None
    shard.unlink()
    assert cache.find(name(1)) is None
    assert caplog.text.count("is damaged") == 1


@pytest.mark.parametrize(
    "tensors",
    [
        {name(1): torch.zeros(2, 3, 4, dtype=torch.float16)},
        {name(1): torch.zeros(2, 3, 4).half(), "checksums": torch.zeros(1, dtype=torch.int64)},
        {"visual_encoder.cls_token": torch.zeros(1, 1, 8), "checksums": torch.zeros(1).long()},
        {f"{number:032x}": torch.zeros(2).half() for number in range(3)},
        {"checksums": torch.zeros(2, dtype=torch.int64)},
    ],
    ids=["no times", "no times but checks", "a model", "no features", "nothing"],
)
def test_a_file_that_is_no_shard_is_one_error(
    tmp_path: Path, tensors: dict[str, torch.Tensor]
) -> None:
    fill(tmp_path, [5])
    save_file(tensors, tmp_path / "other.safetensors")
    with pytest.raises(ConfigError, match=r"other\.safetensors is damaged or no shard .*; delete"):
        FeatureCache(tmp_path, KEY)


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff" * 8, b"\0" * 8, b"\x04" + bytes(7) + b"[[1]", b"\x02" + bytes(7) + b"[]"],
)
def test_junk_in_the_place_of_a_shard_is_one_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "other.safetensors").write_bytes(content)
    with pytest.raises(ConfigError, match=r"other\.safetensors is damaged or no shard"):
        FeatureCache(tmp_path, KEY)


@pytest.mark.parametrize("content", ["[]", "null", "[1, 2]", '"abc"', "{", "[" * 100_000])
def test_a_key_that_is_no_object_is_one_error(tmp_path: Path, content: str) -> None:
    (tmp_path / "key.json").write_text(content)
    with pytest.raises(ConfigError, match=r"key\.json is damaged; delete"):
        FeatureCache(tmp_path, KEY)


def read_only(path: Path) -> NoReturn:
    raise OSError(errno.EROFS, "Read-only file system")


def test_a_folder_that_cannot_be_written_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, [1])
    monkeypatch.setattr(feature_cache, "atomic_write", read_only)
    cache = FeatureCache(tmp_path, KEY)
    for number in (2, 3):
        assert is_kept(cache, 1)
        cache.put(name(number), features(number))
        cache.flush()
    assert cache.find(name(2)) is None, "nothing is kept in memory for ever"
    assert caplog.text.count("cannot be written to (Read-only file system)") == 1


def test_a_folder_that_cannot_be_made_is_one_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match=r"run\.feature_cache: .*key\.json cannot be read or wri"):
        FeatureCache(tmp_path / "file", KEY)
    monkeypatch.setattr(feature_cache, "atomic_write", read_only)
    with pytest.raises(ConfigError, match="read-only file system; give another folder"):
        FeatureCache(tmp_path, KEY)


def test_a_folder_that_is_taken_away_loses_items_only(tmp_path: Path) -> None:
    fill(tmp_path / "cache", [1])
    cache = FeatureCache(tmp_path / "cache", KEY)
    shutil.rmtree(tmp_path / "cache")
    assert cache.find(name(1)) is None
