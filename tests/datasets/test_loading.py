"""Building batches of a configuration, evaluation, and workers that hang or die."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data_sets import (
    NUM_CLIPS,
    NUM_SOUNDS,
    captions_of,
    entry,
    info_of,
    same,
    tokenizer,
    train_batches,
)
from video_llama.datasets.base import BuildInfo, DatasetSettings, SplitInfo
from video_llama.datasets.items import CaptionItems, Item
from video_llama.datasets.loading import (
    EvalBatches,
    LoadingError,
    build_eval_batches,
    make_loader,
)
from video_llama.text.templates import TEMPLATES
from video_llama.types import Batch, ConfigError


def eval_batches(entries: dict[str, DatasetSettings], **keys: Any) -> EvalBatches:
    keys = {"split": "valid", "batch_size": 5, "seed": 7, **keys}
    return build_eval_batches(
        entries, tokenizer=tokenizer(), template=TEMPLATES.get("llama_v2"), **keys
    )


def with_valid(data: Path, *names: str) -> dict[str, DatasetSettings]:
    return {name: entry(name, BuildInfo(valid=info_of(name, data))) for name in names}


def read(batches: EvalBatches, workers: int = 0) -> list[Batch]:
    return list(make_loader(batches, start=0, stop=len(batches), num_workers=workers))


def test_evaluation_sees_every_item_once_and_in_order(data: Path) -> None:
    batches = eval_batches(with_valid(data, "webvid", "audio_caption"))
    found = read(batches)
    expected = [f"p/{i}.mp4" for i in range(NUM_CLIPS)] + [f"{i}.wav" for i in range(NUM_SOUNDS)]
    assert [item for batch in found for item in batch.item_ids] == expected
    assert [len(batch.item_ids) for batch in found] == [5, 5, 2, 3]
    assert all(map(same, found, read(batches, 2)))


def test_ranks_share_the_evaluation(data: Path) -> None:
    entries = with_valid(data, "webvid")
    ranks = [read(eval_batches(entries, rank=rank, world_size=2)) for rank in (0, 1)]
    items = [{item for batch in rank for item in batch.item_ids} for rank in ranks]
    assert not items[0] & items[1]
    assert len(items[0] | items[1]) == NUM_CLIPS


def test_a_split_may_share_the_media_of_training(data: Path) -> None:
    info = info_of("webvid", data)
    info.valid = SplitInfo(anno_dir=str(data / "webvid/1.csv"))
    assert len(read(eval_batches({"webvid": entry("webvid", info)}))) == 1
    found = info.split("val")
    assert found is not None
    assert found.videos_dir == str(data / "clips")
    assert info.split("test") is None


def test_data_sets_without_the_split_are_left_out(data: Path) -> None:
    entries = with_valid(data, "webvid")
    entries["cc_sbu_align"] = entry("cc_sbu_align", info_of("cc_sbu_align", data))
    assert {batch.data_set for batch in read(eval_batches(entries))} == {"webvid"}


def test_a_split_that_no_data_set_has_is_an_error(data: Path) -> None:
    entries = {"webvid": entry("webvid", info_of("webvid", data))}
    with pytest.raises(ConfigError, match=r"no data set has a valid split \(webvid\); set build"):
        eval_batches(entries)
    with pytest.raises(ConfigError, match=r"datasets.webvid: unknown split 'vaild'; did you mean"):
        eval_batches(entries, split="vaild")
    with pytest.raises(ConfigError, match="none is configured"):
        train_batches({})


def test_an_evaluation_item_that_cannot_be_read_is_reported_and_left_out(
    data: Path, tmp_path: Path
) -> None:
    table = tmp_path / "a.csv"
    table.write_text("videoid,page_dir,name\n0,p,a\nnone,p,b\n2,p,c\nno,p,d\n")
    info = BuildInfo(valid=SplitInfo(anno_dir=str(table), videos_dir=str(data / "clips")))
    batch, last = read(eval_batches({"webvid": entry("webvid", info)}, batch_size=3))
    assert [item.item_id for item in batch.bad_items] == ["p/none.mp4"]
    assert batch.item_ids == ["p/0.mp4", "p/2.mp4"]
    assert captions_of(batch) == ["a", "c"]
    assert [item.item_id for item in last.bad_items] == ["p/no.mp4"]
    assert last.item_ids == [], "what stands in counts for nothing"
    assert captions_of(last) == ["a"]


def hang(self: CaptionItems, index: int, generator: torch.Generator) -> Item:
    time.sleep(60)
    raise AssertionError("nobody waits that long")


def die(self: CaptionItems, index: int, generator: torch.Generator) -> Item:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("dead")


def meet_a_cut_file(self: CaptionItems, index: int, generator: torch.Generator) -> Item:
    os.kill(os.getpid(), signal.SIGBUS)
    raise AssertionError("dead")


def test_a_bus_error_is_not_blamed_on_shared_memory_alone(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(CaptionItems, "load", meet_a_cut_file)
    batches = train_batches({"webvid": entry("webvid", info_of("webvid", data))})
    expected = r"a file that was mapped into memory .* was cut short.*worker 0: webvid .*\.mp4, for"
    with pytest.raises(LoadingError, match=expected):
        next(make_loader(batches, start=0, stop=1, num_workers=1))


@pytest.mark.parametrize("fate", [hang, die])
def test_a_worker_that_hangs_or_dies_is_an_error_with_its_item(
    data: Path, monkeypatch: pytest.MonkeyPatch, fate: Any
) -> None:
    monkeypatch.setattr(CaptionItems, "load", fate)
    settings = {"webvid": entry("webvid", info_of("webvid", data))}
    batches = train_batches(settings)
    loader = make_loader(batches, start=0, stop=1, num_workers=1, timeout=1 if fate is hang else 0)
    item = batches._orders[0].item(batches._orders[0].batch(0)[0])
    expected = rf"worker 0: webvid .*clips/p/{item}\.mp4, for \d+ s"
    with pytest.raises(LoadingError, match=expected):
        next(loader)


def test_what_takes_long_in_this_process_is_no_timeout(data: Path) -> None:
    settings = {"webvid": entry("webvid", info_of("webvid", data))}
    loader = make_loader(train_batches(settings), start=0, stop=1, num_workers=0, timeout=1)
    assert next(loader).data_set == "webvid"
