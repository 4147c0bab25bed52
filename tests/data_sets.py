"""Small data sets in the format of every family, and batches made of them."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import torch

from tests.media import tone, write_audio, write_picture, write_video
from tests.reference import GOLDEN
from video_llama.datasets.base import (
    DATASETS,
    BuildInfo,
    DatasetSettings,
    SplitInfo,
    VisProcessors,
)
from video_llama.datasets.items import Item
from video_llama.datasets.loading import TrainBatches, build_items, build_train_batches
from video_llama.datasets.records import Records
from video_llama.datasets.sampling import torch_generator
from video_llama.processors.settings import ImageTrainSettings, VideoTrainSettings
from video_llama.text.templates import TEMPLATES
from video_llama.text.tokenizer import load_tokenizer
from video_llama.types import Batch, CaptionBatch

SIZE = 28
NUM_CLIPS, NUM_PICTURES, NUM_SOUNDS = 12, 6, 3


def write_table(path: Path, rows: Sequence[Sequence[object]], *, delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=delimiter).writerows(rows)
    return path


def write_all(folder: Path) -> Path:
    """Media and annotations of every family below `folder`."""
    for name in ("clips/p", "align/image", "coco", "sounds", "webvid"):
        (folder / name).mkdir(parents=True)
    for i in range(NUM_CLIPS):
        write_video(folder / f"clips/p/{i}.mp4", num_frames=6 + i, width=32, height=32)
    for i in range(NUM_PICTURES):
        write_picture(folder / f"align/image/{i}.jpg", 40 + i, 30)
        write_picture(folder / f"coco/COCO_train2014_{i}.jpg", 30, 40 + i)
    for i in range(NUM_SOUNDS):
        write_audio(folder / f"sounds/{i}.wav", tone(0.5, hertz=200.0 * (i + 1)))
    clips = [(i, "p", f"Clip {'very ' * (i % 4)}number {i}.") for i in range(NUM_CLIPS)]
    write_table(folder / "webvid/0.csv", [("videoid", "page_dir", "name"), *clips[:7]])
    write_table(folder / "webvid/1.csv", [("videoid", "page_dir", "name"), *clips[7:]])
    captions = [{"image_id": str(i), "caption": f"Picture {i}!"} for i in range(NUM_PICTURES)]
    write_json(folder / "align/filter_cap.json", {"annotations": captions})
    write_json(folder / "llava.json", [llava_entry(f"{i}.jpg") for i in range(NUM_PICTURES)])
    write_json(folder / "talk.json", [talk_entry(f"p/{i}.mp4") for i in range(NUM_CLIPS)])
    sounds = [{"audio": f"{i}.wav", "caption": f"Tone {i}"} for i in range(NUM_SOUNDS)]
    write_json(folder / "sounds.json", sounds)
    return folder


def write_json(path: Path, value: Any) -> Path:
    path.write_text(json.dumps(value), "utf-8")
    return path


def llava_entry(image: str, *, turns: int = 2) -> dict[str, Any]:
    sentences = []
    for number in range(turns):
        question = "<image>\nWhat is it?" if number == 0 else "And then?"
        sentences += [{"from": "human", "value": question}, {"from": "gpt", "value": image}]
    return {"image": image, "conversations": sentences}


def talk_entry(video: str) -> dict[str, Any]:
    return {"video": video, "QA": [{"q": "What is it?", "a": f"It is {video}."}]}


def info_of(name: str, folder: Path) -> BuildInfo:
    """Where `write_all` put a family."""
    places = {
        "webvid": ("webvid", "clips"),
        "llava_instruct": ("llava.json", "coco"),
        "webvid_instruct": ("talk.json", "clips"),
        "webvid_instruct_zh": ("talk.json", "clips"),
        "audio_caption": ("sounds.json", "sounds"),
    }
    if name == "cc_sbu_align":
        return BuildInfo(storage=str(folder / "align"))
    annotation, media = places[name]
    return BuildInfo(anno_dir=str(folder / annotation), videos_dir=str(folder / media))


def entry(name: str, info: BuildInfo, **keys: Any) -> DatasetSettings:
    """The settings of a family with small pictures."""
    settings = DATASETS.get(name)(build_info=info, num_video_query_token=4, **keys)
    vis = settings.vis_processor.train
    if isinstance(vis, VideoTrainSettings | ImageTrainSettings):
        settings.vis_processor = VisProcessors(train=replace(vis, image_size=SIZE))
    return settings


def train_batches(entries: dict[str, DatasetSettings], **keys: Any) -> TrainBatches:
    """Batches of three with the tiny tokenizer."""
    keys = {"batch_size": 3, "seed": 7, **keys}
    template = TEMPLATES.get(keys.pop("template", "llama_v2"))
    return build_train_batches(entries, tokenizer=tokenizer(), template=template, **keys)


def tokenizer() -> Any:
    return load_tokenizer(GOLDEN / "tiny_tokenizer")


def same(one: Batch, other: Batch) -> bool:
    """Whether two batches are equal to the bit."""
    if type(one) is not type(other):
        return False
    for key, value in vars(one).items():
        if isinstance(value, torch.Tensor):
            if not torch.equal(value, getattr(other, key)):
                return False
        elif value != getattr(other, key):
            return False
    return True


def captions_of(batch: Batch) -> list[str]:
    assert isinstance(batch, CaptionBatch)
    return batch.captions


def load_item(
    name: str, info: BuildInfo, index: int = 0, *, template: str = "vicuna", **keys: Any
) -> Item:
    """An item of a family as it is trained on."""
    items = build_items(
        name,
        entry(name, info, **keys),
        split="train",
        tokenizer=tokenizer(),
        template=TEMPLATES.get(template),
    )
    assert items is not None
    return items.load(index, torch_generator("test", index))


def conversation_of(item: Item) -> str:
    """The conversation of an item with its placeholders."""
    text: str = tokenizer().decode(item.input_ids, skip_special_tokens=False)
    return text


def read_annotation(name: str, path: Path) -> Records:
    """The records of an annotation file, whose media lie beside it."""
    folder = str(path.parent)
    return DATASETS.get(name)().read(
        SplitInfo(anno_dir=str(path), videos_dir=folder, storage=folder)
    )


def write_clip_with_bad_sound(path: Path, damage: str) -> Path:
    """A clip of 16 good frames whose sound track cannot be used.

    Args:
        path: of an mp4 file.
        damage: `bytes` of every packet, `mute` for a track without packets, `short` for one of a
            few milliseconds.
    """
    whole = path.with_name(f"whole-{path.name}")
    write_video(whole, sound=tone(2.0), width=32, height=32)
    with av.open(str(whole)) as source, av.open(str(path), "w") as target:
        copies = {s.index: target.add_stream_from_template(s) for s in source.streams}
        heard = 0
        for packet in source.demux():
            if packet.dts is None:
                continue
            new = packet
            if packet.stream.type == "audio":
                heard += 1
                if damage == "mute" or (damage == "short" and heard > 1):
                    continue
                if damage == "bytes":
                    new = av.Packet(bytes(packet.size))
                    new.pts, new.dts, new.time_base = packet.pts, packet.dts, packet.time_base
                    new.duration = packet.duration
            new.stream = copies[packet.stream_index]
            target.mux(new)
    whole.unlink()
    return path
