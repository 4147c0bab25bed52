"""Clips with captions: whole captions, frames of both halves."""

from __future__ import annotations

from pathlib import Path

import torch

from tests.data_sets import (
    NUM_CLIPS,
    SIZE,
    entry,
    info_of,
    load_item,
    tokenizer,
    train_batches,
    write_table,
)
from tests.media import write_video
from video_llama.datasets.base import BuildInfo, VisProcessors
from video_llama.datasets.loading import build_items
from video_llama.datasets.sampling import torch_generator
from video_llama.text.templates import TEMPLATES
from video_llama.types import CaptionBatch


def test_webvid_cleans_captions_and_takes_frames_of_both_halves(data: Path) -> None:
    batch = train_batches({"webvid": entry("webvid", info_of("webvid", data))})[0]
    assert isinstance(batch, CaptionBatch)
    assert batch.pixel_values is not None
    assert batch.pixel_values.shape == (3, 3, 8, SIZE, SIZE)
    assert batch.data_set == "webvid"
    for item_id, caption in zip(batch.item_ids, batch.captions, strict=True):
        number = int(item_id.removeprefix("p/").removesuffix(".mp4"))
        assert caption == f"clip {'very ' * (number % 4)}number {number}"


def test_webvid_draws_other_frames_each_time_but_instructions_do_not(data: Path) -> None:
    def frames(name: str, seed: int) -> torch.Tensor:
        settings = entry(name, info_of(name, data))
        vis = settings.vis_processor.train
        assert vis is not None
        whole = VisProcessors(train=type(vis)(image_size=SIZE, min_scale=1.0))  # type: ignore[call-arg]
        settings.vis_processor = whole
        items = build_items(
            name, settings, split="train", tokenizer=tokenizer(), template=TEMPLATES.get("vicuna")
        )
        assert items is not None
        return items.load(NUM_CLIPS - 1, torch_generator(seed)).values.mean(dim=(0, 2, 3))

    # Frame means rise with time; the crop changes them little, other frames a lot.
    assert max(float((frames("webvid", 0) - frames("webvid", s)).abs().max()) for s in (1, 2)) > 0.1
    one, other = frames("webvid_instruct", 0), frames("webvid_instruct", 1)
    assert torch.allclose(one.diff(), other.diff(), atol=0.05)


def test_webvid_evaluates_uniform_frames(data: Path) -> None:
    settings = entry("webvid", BuildInfo(valid=info_of("webvid", data)))
    items = build_items(
        "webvid", settings, split="valid", tokenizer=tokenizer(), template=TEMPLATES.get("vicuna")
    )
    assert items is not None
    assert items.loader.processor.sampling == "uniform"  # type: ignore[union-attr]


def test_webvid_needs_no_subfolders(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", width=32, height=32)
    write_table(
        tmp_path / "a.tsv", [("videoid", "page_dir", "name"), ("a", "", "x")], delimiter="\t"
    )
    info = BuildInfo(anno_dir=str(tmp_path / "a.tsv"), videos_dir=str(tmp_path))
    assert load_item("webvid", info).item_id == "a.mp4"
