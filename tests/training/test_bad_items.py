"""A folder of clips some of which are broken trains; one with too many of them says so."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from tests.media import tone, truncate, write_audio, write_video
from tests.training.training_data import (
    STAGE_1,
    config_path,
    losses,
    run_folder,
    tiny_options,
    train,
)
from video_llama.datasets.sampling import Order
from video_llama.runners.checkpoints import Checkpoint

VISION_1 = ("visionbranch", STAGE_1)
NUM_CLIPS, BATCH = 208, 8
STEPS = NUM_CLIPS // BATCH
"""One epoch of the data set: every clip is asked for."""


def header_only(path: Path) -> None:
    """A clip whose recording ended before its first frame."""
    with av.open(str(path), "w", options={"movflags": "frag_keyframe+empty_moov"}) as container:
        stream: Any = container.add_stream("libx264", rate=8)
        stream.width, stream.height, stream.pix_fmt = 32, 32, "yuv420p"
        container.start_encoding()


def cut_short(path: Path) -> None:
    """A download that broke off, of a clip whose header comes first."""
    truncate(write_video(path, options={"movflags": "faststart"}), 0.6)


BROKEN: dict[str, Callable[[Path], object]] = {
    "the file is empty": lambda path: path.write_bytes(b""),
    "header is damaged": lambda path: truncate(write_video(path), 0.5),
    "it is text, not a media file": lambda path: path.write_text("this is not a clip\n" * 50),
    "it has no video track": lambda path: write_audio(path, tone(0.5), codec="aac"),
    "has no frames": header_only,
    "cut short": cut_short,
}
"""Reason and maker of each kind that cannot be read."""

UNUSUAL: list[Callable[[Path], object]] = [
    lambda path: write_video(path, num_frames=1),
    lambda path: write_video(path, width=33, height=47, pix_fmt="yuv444p"),
    lambda path: write_video(path, pix_fmt="yuv420p10le"),
    lambda path: write_video(path, num_frames=5, times=[0, 0.1, 0.5, 0.6, 2]),
]
"""Makers of what looks broken, but can be read: one frame, odd sizes, 10 bits, uneven times."""


def write_clips(folder: Path, num_broken: int) -> dict[str, str]:
    """`clips/` and `a.csv`; returns the reason of every broken clip."""
    clips = folder / "clips"
    clips.mkdir(parents=True)
    numbers = random.Random(3).sample(range(NUM_CLIPS), num_broken + len(UNUSUAL))
    good = [write_video(folder / f"{n}.mp4", num_frames=6 + n).read_bytes() for n in range(3)]
    for number in range(NUM_CLIPS):
        (clips / f"{number}.mp4").write_bytes(good[number % len(good)])
    for make, number in zip(UNUSUAL, numbers, strict=False):
        make(clips / f"{number}.mp4")
    reasons = {}
    contents: dict[str, bytes] = {}
    for place, number in enumerate(numbers[len(UNUSUAL) :]):
        reason = list(BROKEN)[place % len(BROKEN)]
        if reason not in contents:
            BROKEN[reason](folder / "broken.mp4")
            contents[reason] = (folder / "broken.mp4").read_bytes()
        (clips / f"{number}.mp4").write_bytes(contents[reason])
        reasons[f"{number}.mp4"] = reason
    rows = "".join(f"{number},,{caption(number)}\n" for number in range(NUM_CLIPS))
    (folder / "a.csv").write_text(f"videoid,page_dir,name\n{rows}")
    return reasons


def caption(number: int) -> str:
    return f"clip {'very ' * (number % 5)}{number}"


def options(data: Path, output: Path, *more: str) -> list[str]:
    return [
        *tiny_options(*VISION_1, data, output),
        "datasets.cc_sbu_align=null",
        f"datasets.webvid.build_info={{anno_dir: {data}/a.csv, videos_dir: {data}/clips}}",
        *(f"run.iters_per_epoch={STEPS}", f"run.batch_size_train={BATCH}", "run.log_every=1"),
        *more,
    ]


def asked_and_bad(reasons: dict[str, str], processes: int) -> tuple[int, int]:
    """What one epoch asks for, by the rule of docs/data.md: the next item takes the place."""
    texts = np.array([len(caption(number)) for number in range(NUM_CLIPS)])
    asked = bad = 0
    for rank in range(processes):
        order = Order(
            "webvid",
            NUM_CLIPS,
            lengths=lambda indices: texts[indices],
            batch_size=BATCH // processes,
            bucket_batches=8,
            seed=42,
            rank=rank,
            world_size=processes,
        )
        for step in range(STEPS):
            for position in order.batch(step):
                while asked := asked + 1:
                    if f"{order.item(position)}.mp4" not in reasons:
                        break
                    bad, position = bad + 1, position + 1
    return asked, bad


@pytest.mark.parametrize(
    ("processes", "more"),
    [
        (0, ("run.num_workers=2",)),
        pytest.param(2, ("run.num_workers=1", "run.batch_size_train=4"), marks=pytest.mark.slow),
    ],
)
def test_a_few_broken_clips_are_each_reported_once_and_counted(
    processes: int, more: tuple[str, ...], tmp_path: Path
) -> None:
    reasons = write_clips(tmp_path, num_broken=6)
    output = tmp_path / "runs"
    told = train(
        config_path(*VISION_1), options(tmp_path, output, *more), processes=processes
    ).stderr
    run = run_folder(output)
    assert len(losses(run)) == STEPS

    listed = [json.loads(line) for line in (run / "bad_items.jsonl").read_text().splitlines()]
    assert sorted(item["item_id"] for item in listed) == sorted(reasons)
    for item in listed:
        assert item["data_set"] == "webvid"
        assert item["path"] == f"{tmp_path}/clips/{item['item_id']}"
        assert reasons[item["item_id"]] in item["reason"], item

    checkpoint = Checkpoint.read(run / f"checkpoints/step-{STEPS:06d}")
    assert checkpoint is not None
    counts = checkpoint.state()["hooks"]["bad_items"]
    asked, bad = asked_and_bad(reasons, max(processes, 1))
    assert counts == {"asked": {"webvid": asked}, "bad": {"webvid": bad}}
    assert asked - bad == NUM_CLIPS
    assert re.search(rf"step {STEPS}/{STEPS}: loss .*, 6 bad items\n", told)
    summary = f"data set webvid: {bad} of {asked} items that were asked for could not be read; see "
    assert told.count(summary + str(run / "bad_items.jsonl")) == 1


@pytest.mark.parametrize(
    ("processes", "more"),
    [
        (0, ()),
        pytest.param(2, ("run.num_workers=1", "run.batch_size_train=4"), marks=pytest.mark.slow),
    ],
)
def test_too_many_broken_clips_end_the_run_with_one_clear_error(
    processes: int, more: tuple[str, ...], tmp_path: Path
) -> None:
    reasons = write_clips(tmp_path, num_broken=NUM_CLIPS * 3 // 10)
    output = tmp_path / "runs"
    told = train(
        config_path(*VISION_1), options(tmp_path, output, *more), processes=processes, status=1
    ).stderr
    assert "video_llama/runners/runner.py" not in told, "no traceback"
    run = run_folder(output)
    (error,) = re.findall(r"^train\.py: error: (.*)", told, re.MULTILINE)
    told_counts = r"data set webvid: (\d+) of (\d+) items that were asked for cannot be read"
    found = re.match(told_counts, error)
    assert found is not None, error
    bad, asked = map(int, found.groups())
    assert 100 <= asked < 120, "judged as soon as it can be"
    assert (asked - bad) % BATCH == 0
    assert "run.max_bad_fraction is 5.0%" in error
    assert f"{run}/bad_items.jsonl" in error
    listed = [json.loads(line) for line in (run / "bad_items.jsonl").read_text().splitlines()]
    names = [item["item_id"] for item in listed]
    assert len(names) == len(set(names))
    assert set(names) <= reasons.keys()
