"""A batch is a function of seed, step and rank, whatever the workers and the state of the media."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.data_sets import NUM_CLIPS, captions_of, entry, info_of, same, train_batches
from tests.media import truncate, write_video
from video_llama.datasets.base import BuildInfo, DatasetSettings
from video_llama.datasets.batches import ItemError, TrainBatches, WorkerStatus
from video_llama.datasets.items import CaptionItems, Item
from video_llama.datasets.loading import make_loader
from video_llama.types import Batch, CaptionBatch, ConfigError, MediaError

ALL = ("webvid", "cc_sbu_align", "llava_instruct", "webvid_instruct", "audio_caption")
PROMPTS = ["One <ImageHere>", "Two <ImageHere>", "Three <ImageHere>"]


def everything(data: Path) -> dict[str, DatasetSettings]:
    return {name: entry(name, info_of(name, data)) for name in ALL}


def read(batches: TrainBatches, start: int, stop: int, workers: int = 0) -> list[Batch]:
    return list(make_loader(batches, start=start, stop=stop, num_workers=workers, timeout=60))


def test_workers_and_restarts_do_not_change_the_batches(data: Path) -> None:
    expected = read(train_batches(everything(data), prompts=PROMPTS), 0, 12)
    assert {batch.data_set for batch in expected} == set(ALL)
    for start, workers in ((0, 1), (0, 2), (5, 2), (11, 0), (3, 1)):
        found = read(train_batches(everything(data), prompts=PROMPTS), start, 12, workers)
        assert len(found) == 12 - start
        assert all(map(same, expected[start:], found)), (start, workers)


def test_another_seed_is_another_order_and_other_crops(data: Path) -> None:
    settings = {"webvid": entry("webvid", info_of("webvid", data))}
    one, again, other = (train_batches(settings, seed=seed)[0] for seed in (1, 1, 2))
    assert same(one, again)
    assert one.item_ids != other.item_ids


def test_an_item_is_cropped_anew_in_every_epoch(data: Path) -> None:
    settings = {"cc_sbu_align": entry("cc_sbu_align", info_of("cc_sbu_align", data))}
    batches = train_batches(settings, batch_size=6)
    pictures = []
    for step in (0, 1):
        batch = batches[step]
        assert batch.pixel_values is not None
        pictures.append(batch.pixel_values[batch.item_ids.index("0.jpg")])
    assert not pictures[0].equal(pictures[1])


def crops(batches: TrainBatches, name: str, epochs: int) -> list[bytes]:
    """An item as it is in each epoch of batches that hold all items once."""
    found = []
    for step in range(epochs):
        batch = batches[step]
        assert batch.pixel_values is not None
        found.append(batch.pixel_values[batch.item_ids.index(name)].numpy().tobytes())
    return found


def test_views_take_turns_by_epoch(data: Path) -> None:
    settings = {"cc_sbu_align": entry("cc_sbu_align", info_of("cc_sbu_align", data))}
    keys = {"batch_size": 6, "num_views": 2}
    found = crops(train_batches(settings, **keys), "0.jpg", 4)
    assert found[0] != found[1]
    assert found[2:] == found[:2]
    other_seed = crops(train_batches(settings, **keys, seed=3), "0.jpg", 2)
    assert sorted(other_seed) == sorted(found[:2])
    firsts = {crops(train_batches(settings, **keys, seed=seed), "0.jpg", 1)[0] for seed in range(8)}
    assert firsts == set(found)


def test_views_do_not_depend_on_the_process(data: Path) -> None:
    settings = {"cc_sbu_align": entry("cc_sbu_align", info_of("cc_sbu_align", data))}
    one = train_batches(settings, batch_size=6, num_views=3)[0]
    ranks = [
        train_batches(settings, batch_size=3, num_views=3, rank=rank, world_size=2)[0]
        for rank in (0, 1)
    ]
    assert one.pixel_values is not None
    for batch in ranks:
        assert batch.pixel_values is not None
        for item_id, picture in zip(batch.item_ids, batch.pixel_values, strict=True):
            assert picture.equal(one.pixel_values[one.item_ids.index(item_id)])


def test_every_item_comes_once_per_epoch_and_ranks_share_them(data: Path) -> None:
    settings = {"webvid": entry("webvid", info_of("webvid", data))}
    ranks = [train_batches(settings, rank=rank, world_size=2) for rank in (0, 1)]
    seen = [[item for step in (0, 1) for item in rank[step].item_ids] for rank in ranks]
    assert not set(seen[0]) & set(seen[1])
    assert sorted(seen[0] + seen[1]) == sorted(f"p/{i}.mp4" for i in range(NUM_CLIPS))


def test_all_ranks_draw_the_same_data_set_but_their_own_prompt(data: Path) -> None:
    names = ("cc_sbu_align", "audio_caption")
    settings = {name: entry(name, info_of(name, data)) for name in names}
    ranks = [
        train_batches(settings, rank=r, world_size=2, batch_size=1, prompts=PROMPTS) for r in (0, 1)
    ]
    pairs = [(ranks[0][step], ranks[1][step]) for step in range(12)]
    assert all(one.data_set == other.data_set for one, other in pairs)
    prompts = [tuple(b.prompt for b in pair if isinstance(b, CaptionBatch)) for pair in pairs]
    assert {prompt for pair in prompts for prompt in pair} == set(PROMPTS)
    assert any(one != other for one, other in prompts)


def test_without_prompts_the_media_come_first(data: Path) -> None:
    batch = train_batches({"webvid": entry("webvid", info_of("webvid", data))})[0]
    assert isinstance(batch, CaptionBatch)
    assert batch.prompt is None


def test_sample_ratios_weigh_the_data_sets(data: Path) -> None:
    ratios = {"webvid": 3.0, "cc_sbu_align": 1.0, "audio_caption": 0.0}
    settings = {n: entry(n, info_of(n, data), sample_ratio=r) for n, r in ratios.items()}
    batches = train_batches(settings)
    names = [batches.sources[batches._mixture.draw(step)[0]].name for step in range(2000)]
    assert names.count("webvid") / 2000 == pytest.approx(0.75, abs=0.04)
    assert "audio_caption" not in names


@pytest.fixture
def broken(tmp_path: Path) -> Iterator[tuple[DatasetSettings, dict[str, str]]]:
    """A hundred clips, of which some cannot be read and some look as if they could not."""
    folder = tmp_path / "clips"
    folder.mkdir()
    good = write_video(tmp_path / "good.mp4", width=32, height=32, num_frames=8)
    for i in range(100):
        (folder / f"{i}.mp4").hardlink_to(good)

    def replace(number: int) -> Path:
        path = folder / f"{number}.mp4"
        path.unlink()
        return path

    replace(3).write_bytes(b"")
    truncate(write_video(replace(31), width=32, height=32), 0.4)
    replace(59).write_text("not a clip\n" * 20)
    replace(77)
    write_video(replace(10), width=32, height=32, num_frames=1)
    write_video(replace(20), width=34, height=50)
    write_video(replace(30), width=32, height=32, pix_fmt="yuv420p10le")
    write_video(replace(40), width=32, height=32, num_frames=5, times=[0, 0.1, 0.5, 0.6, 2])
    table = tmp_path / "a.csv"
    table.write_text("videoid,page_dir,name\n" + "".join(f"{i},,clip {i}\n" for i in range(100)))
    info = BuildInfo(anno_dir=str(table), videos_dir=str(folder))
    reasons = {"3": "empty", "31": "header is damaged", "59": "not a media file", "77": "no such"}
    yield entry("webvid", info, bucket_batches=1), reasons
    shutil.rmtree(folder)


def test_unreadable_clips_are_replaced_by_the_next_and_reported_once(
    broken: tuple[DatasetSettings, dict[str, str]],
) -> None:
    settings, reasons = broken
    batches = train_batches({"webvid": settings}, batch_size=5)
    epoch = read(batches, 0, 20, 2)
    bad = [item for batch in epoch for item in batch.bad_items]
    assert sorted({item.item_id for item in bad}) == sorted(f"{n}.mp4" for n in reasons)
    for item in bad:
        assert reasons[Path(item.item_id).stem] in item.reason, item
        assert item.path.endswith(f"clips/{item.item_id}")
        assert item.data_set == "webvid"
    assert sum(len(batch.item_ids) for batch in epoch) == 100
    assert len({item for batch in epoch for item in batch.item_ids}) == 96
    order = batches._orders[0]
    for step, batch in enumerate(epoch):
        for slot, position in enumerate(order.batch(step)):
            readable = (f"{order.item(place)}.mp4" for place in range(position, position + 9))
            expected = next(item for item in readable if Path(item).stem not in reasons)
            assert batch.item_ids[slot] == expected
    assert all(map(same, epoch, read(train_batches({"webvid": settings}, batch_size=5), 0, 20)))


def test_a_data_set_without_any_readable_file_is_an_error(tmp_path: Path) -> None:
    table = tmp_path / "a.csv"
    table.write_text("videoid,page_dir,name\n" + "".join(f"{i},,clip\n" for i in range(150)))
    settings = entry("webvid", BuildInfo(anno_dir=str(table), videos_dir=str(tmp_path / "wrong")))
    message = r"datasets.webvid: 100 items in a row cannot be read, the first is .*wrong/\d+.mp4"
    with pytest.raises(ConfigError, match=message):
        train_batches({"webvid": settings})[0]


@pytest.mark.parametrize("workers", [0, 1])
def test_any_other_error_stops_with_the_item_and_its_traceback(
    data: Path, monkeypatch: pytest.MonkeyPatch, workers: int
) -> None:
    def fail(self: CaptionItems, index: int, generator: object) -> Item:
        raise KeyError("a bug")

    monkeypatch.setattr(CaptionItems, "load", fail)
    batches = train_batches({"webvid": entry("webvid", info_of("webvid", data))})
    with pytest.raises(ItemError, match=r"webvid, item \d+: KeyError: 'a bug'"):
        read(batches, 0, 1, workers)


def test_captions_are_those_of_their_items(data: Path) -> None:
    batch = train_batches({"cc_sbu_align": entry("cc_sbu_align", info_of("cc_sbu_align", data))})[3]
    expected = [f"Picture {item.removesuffix('.jpg')}!" for item in batch.item_ids]
    assert captions_of(batch) == expected


def test_the_board_shows_what_is_being_done_and_nothing_else() -> None:
    status = WorkerStatus()
    assert status.busy() == []
    with status.working_on(2, 10**12, "item"):
        ((worker, number, index, seconds),) = status.busy()
        assert (worker, number, index) == (0, 2, 10**12)
        assert 0 <= seconds < 60
    assert status.busy() == []


@pytest.mark.parametrize(
    ("error", "expected", "message"),
    [
        (MediaError("a.mp4", "broken"), MediaError, "^a.mp4: broken$"),
        (ConfigError("too long"), ConfigError, "^set, item 3: too long$"),
        (ZeroDivisionError("oh"), ItemError, "^set, item 3: ZeroDivisionError: oh$"),
        (KeyboardInterrupt(), KeyboardInterrupt, "^$"),
    ],
)
def test_errors_get_the_name_of_the_item_unless_they_have_it(
    error: BaseException, expected: type[BaseException], message: str
) -> None:
    status = WorkerStatus()
    with pytest.raises(expected, match=message), status.working_on(0, 3, "set, item 3"):
        raise error
    assert status.busy() == []
