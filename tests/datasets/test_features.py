"""Features are kept whole, found by everybody, and never taken for those of something else."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch

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
