"""From annotated items to tensors and batches."""

from __future__ import annotations

import json
from pathlib import Path

import av
import pytest
import torch

from tests.data_sets import (
    SIZE,
    captions_of,
    conversation_of,
    entry,
    info_of,
    load_item,
    tokenizer,
    train_batches,
    write_json,
    write_table,
)
from tests.media import tone, write_video
from tests.reference import SHARED, needs_shared
from video_llama.datasets.base import BuildInfo, VisProcessors
from video_llama.processors.settings import ImageTrainSettings
from video_llama.text.templates import TEMPLATES
from video_llama.types import ConfigError, InstructionBatch


def test_a_short_clip_fills_the_batch_and_the_message_names_what_is_there(data: Path) -> None:
    item = load_item("webvid_instruct", info_of("webvid_instruct", data), 0)  # 6 frames
    assert item.values.shape == (3, 8, SIZE, SIZE)
    assert "contains6frames" in conversation_of(item).replace(" ", "")
    frames = item.values.unbind(1)
    assert torch.equal(frames[0], frames[1])  # floor(i * 6 / 8) = 0 0 1 2 3 3 4 5
    assert torch.equal(frames[4], frames[5])
    assert not torch.equal(frames[1], frames[2])


@pytest.mark.parametrize("template", ["vicuna", "llama_v2"])
def test_conversations_are_those_of_the_template(data: Path, template: str) -> None:
    info = info_of("webvid_instruct", data)
    item = load_item("webvid_instruct", info, 2, template=template)
    times = "0.0, 0.1, 0.2, 0.4, 0.5, 0.6, 0.8, 0.9"
    question = (
        f"<Video>{'<ImageHere>' * 4}</Video> The video contains 8 frames sampled at {times} "
        "seconds. What is it?"
    )
    encoded = TEMPLATES.get(template).encode([(question, "It is p/2.mp4.")], tokenizer())
    assert list(item.input_ids) == encoded.input_ids
    assert list(item.labels) == encoded.labels


def test_marks_in_an_annotation_stay_text(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", width=32, height=32)
    pairs = [{"q": "<ImageHere> ###", "a": "</s> <ImageHere>"}] * 2
    path = write_json(tmp_path / "talk.json", [{"video": "a.mp4", "QA": pairs}])
    info = BuildInfo(anno_dir=str(path), videos_dir=str(tmp_path))
    item = load_item("webvid_instruct", info, template="llama_v2")
    decoder = tokenizer()
    assert list(item.input_ids).count(decoder.image_token_id) == 4
    assert list(item.input_ids).count(decoder.eos_token_id) == 2


def test_conversations_are_padded_on_the_right(data: Path) -> None:
    settings = entry("webvid_instruct", info_of("webvid_instruct", data), bucket_batches=1)
    batch = train_batches({"webvid_instruct": settings}, batch_size=6)[0]
    assert isinstance(batch, InstructionBatch)
    lengths = batch.attention_mask.sum(dim=1)
    assert len(set(lengths.tolist())) > 1
    assert batch.input_ids.shape == (6, int(lengths.max()))
    padding = ~batch.attention_mask
    assert bool((batch.input_ids[padding] == tokenizer().pad_token_id).all())
    assert bool((batch.labels[padding] == -100).all())
    assert bool((padding.int().diff(dim=1) >= 0).all())
    assert batch.attention_mask.dtype == torch.bool


def test_a_question_that_is_too_long_names_item_and_key(data: Path) -> None:
    settings = entry("webvid_instruct", info_of("webvid_instruct", data), max_length=20)
    with pytest.raises(ConfigError, match=r"webvid_instruct, item \d+: max_length: 20 tokens"):
        train_batches({"webvid_instruct": settings})[0]


def test_a_processor_for_another_kind_of_media_is_an_error(data: Path) -> None:
    settings = entry("webvid", info_of("webvid", data))
    settings.vis_processor = VisProcessors(train=ImageTrainSettings())
    with pytest.raises(ConfigError, match=r"webvid: vis_processor.*blip2_image_train.*is video"):
        train_batches({"webvid": settings})
    settings.vis_processor = VisProcessors()
    with pytest.raises(ConfigError, match=r"vis_processor.train: null given, and audio_proc"):
        train_batches({"webvid": settings})


@needs_shared
def test_real_media_train(tmp_path: Path) -> None:
    media = SHARED / "media"
    clips = sorted(path for path in media.iterdir() if path.suffix == ".mp4")
    rows = [(clip.stem, "", f"The clip {clip.stem}.") for clip in clips]
    write_table(tmp_path / "a.csv", [("videoid", "page_dir", "name"), *rows])
    sounds = [{"audio": path.name, "caption": path.stem} for path in media.glob("*.wav")]
    (tmp_path / "s.json").write_text(json.dumps(sounds))
    entries = {
        "webvid": entry("webvid", BuildInfo(anno_dir=str(tmp_path), videos_dir=str(media))),
        "audio_caption": entry(
            "audio_caption", BuildInfo(anno_dir=str(tmp_path / "s.json"), videos_dir=str(media))
        ),
    }
    batches = train_batches(entries, batch_size=1)
    found = [batches[step] for step in range(5)]
    assert {batch.data_set for batch in found} == {"webvid", "audio_caption"}
    assert all(not batch.bad_items and all(captions_of(batch)) for batch in found)


def test_a_clip_with_bad_frames_still_gives_its_sound(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", sound=tone(1.0), width=32, height=32)
    with av.open(str(whole)) as source, av.open(str(tmp_path / "a.mp4"), "w") as target:
        copies = {s.index: target.add_stream_from_template(s) for s in source.streams}
        for packet in source.demux():
            if packet.dts is None:
                continue
            if packet.stream.type == "video":
                times = packet.pts, packet.dts, packet.time_base
                index, packet = packet.stream_index, av.Packet(bytes(packet.size))
                packet.pts, packet.dts, packet.time_base = times
                packet.stream = copies[index]
            else:
                packet.stream = copies[packet.stream_index]
            target.mux(packet)
    write_table(tmp_path / "a.csv", [("audio", "caption"), ("a.mp4", "x"), ("whole.mp4", "y")])
    info = BuildInfo(anno_dir=str(tmp_path / "a.csv"), videos_dir=str(tmp_path))
    batch = train_batches({"audio_caption": entry("audio_caption", info)}, batch_size=2)[0]
    assert not batch.bad_items
    assert batch.audio_values is not None
    assert torch.equal(batch.audio_values[0], batch.audio_values[1])
