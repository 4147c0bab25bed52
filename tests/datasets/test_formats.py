"""What every family makes of its annotation and its media."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.data_sets import (
    NUM_CLIPS,
    SIZE,
    captions_of,
    entry,
    info_of,
    llava_entry,
    tokenizer,
    train_batches,
    write_json,
    write_table,
)
from tests.media import tone, write_audio, write_picture, write_video
from tests.reference import SHARED, needs_shared
from video_llama.datasets.base import BuildInfo, VisProcessors
from video_llama.datasets.items import Item
from video_llama.datasets.loading import build_items
from video_llama.datasets.sampling import torch_generator
from video_llama.processors.settings import AudioSettings, ImageTrainSettings
from video_llama.text.templates import TEMPLATES
from video_llama.types import CaptionBatch, ConfigError, InstructionBatch


def load(
    name: str, info: BuildInfo, index: int = 0, *, template: str = "vicuna", **keys: Any
) -> Item:
    items = build_items(
        name,
        entry(name, info, **keys),
        split="train",
        tokenizer=tokenizer(),
        template=TEMPLATES.get(template),
    )
    assert items is not None
    return items.load(index, torch_generator("test", index))


def text_of(item: Item) -> str:
    """The conversation with its placeholders."""
    decoder = tokenizer()
    text: str = decoder.decode(item.input_ids, skip_special_tokens=False)
    return text


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
    assert items._loader.processor.sampling == "uniform"  # type: ignore[attr-defined]


def test_webvid_needs_no_subfolders(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", width=32, height=32)
    write_table(
        tmp_path / "a.tsv", [("videoid", "page_dir", "name"), ("a", "", "x")], delimiter="\t"
    )
    info = BuildInfo(anno_dir=str(tmp_path / "a.tsv"), videos_dir=str(tmp_path))
    assert load("webvid", info).item_id == "a.mp4"


def test_cc_sbu_align_keeps_its_captions_as_they_are(data: Path) -> None:
    item = load("cc_sbu_align", info_of("cc_sbu_align", data), 2)
    assert item.caption == "Picture 2!"
    assert item.item_id == "2.jpg"
    assert item.values.shape == (3, SIZE, SIZE)


def test_llava_puts_the_picture_where_the_mark_is(data: Path) -> None:
    item = load("llava_instruct", info_of("llava_instruct", data), 1)
    picture = "<Image>" + "<ImageHere>" * 4 + "</Image>"
    text = text_of(item).replace(" ", "")
    assert picture.replace(" ", "") in text
    assert text.count("<ImageHere>") == 4
    assert "<image>" not in text
    assert text.index("</Image>") < text.index("Whatisit?") < text.index("Andthen?")


def test_llava_replaces_a_mark_in_a_later_turn(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg")
    talk = llava_entry("a.jpg", turns=2)
    for number, question in ((0, "Hello."), (2, "What is <image> then?")):
        talk["conversations"][number]["value"] = question
    path = write_json(tmp_path / "llava.json", [talk])
    info = BuildInfo(anno_dir=str(path), videos_dir=str(tmp_path))
    text = text_of(load("llava_instruct", info)).replace(" ", "")
    assert text.index("Hello.") < text.index("<ImageHere>") < text.index("then?")


def test_llava_falls_back_to_the_plain_file_name(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.jpg", 30, 30)
    path = write_json(tmp_path / "llava.json", [llava_entry("a.jpg")])
    info = BuildInfo(anno_dir=str(path), videos_dir=str(tmp_path))
    plain = load("llava_instruct", info).values
    write_picture(tmp_path / "COCO_train2014_a.jpg", 30, 30, mode="L")
    coco = load("llava_instruct", info).values
    assert not torch.equal(plain, coco)


def test_clips_are_introduced_with_the_times_of_their_frames(data: Path) -> None:
    info = info_of("webvid_instruct", data)
    text = text_of(load("webvid_instruct", info, 2)).replace(" ", "")  # 8 frames at 8 per second
    times = "0.0,0.1,0.2,0.4,0.5,0.6,0.8,0.9"
    assert f"</Video>Thevideocontains8framessampledat{times}seconds.Whatisit?" in text
    assert "Itisp/2.mp4." in text


def test_chinese_clips_are_not(data: Path) -> None:
    item = load("webvid_instruct_zh", info_of("webvid_instruct_zh", data), 2)
    text = text_of(item).replace(" ", "")
    assert "</Video>Whatisit?" in text


def test_a_short_clip_fills_the_batch_and_the_message_names_what_is_there(data: Path) -> None:
    item = load("webvid_instruct", info_of("webvid_instruct", data), 0)  # 6 frames
    assert item.values.shape == (3, 8, SIZE, SIZE)
    assert "contains6frames" in text_of(item).replace(" ", "")
    frames = item.values.unbind(1)
    assert torch.equal(frames[0], frames[1])  # floor(i * 6 / 8) = 0 0 1 2 3 3 4 5
    assert torch.equal(frames[4], frames[5])
    assert not torch.equal(frames[1], frames[2])


@pytest.mark.parametrize("template", ["vicuna", "llama_v2"])
def test_conversations_are_those_of_the_template(data: Path, template: str) -> None:
    info = info_of("webvid_instruct", data)
    item = load("webvid_instruct", info, 2, template=template)
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
    item = load("webvid_instruct", info, template="llama_v2")
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


def test_sounds_have_captions_of_every_annotation_form(data: Path, tmp_path: Path) -> None:
    rows = [("audio", "caption"), ("a.flac", "High"), ("b.mp3", "Low"), ("c.mp4", "Film")]
    write_audio(tmp_path / "a.flac", tone(0.4))
    write_audio(tmp_path / "b.mp3", tone(0.4, hertz=100))
    write_video(tmp_path / "c.mp4", sound=tone(1.0), width=32, height=32)
    table = write_table(tmp_path / "a.csv", rows)
    info = BuildInfo(anno_dir=str(table), videos_dir=str(tmp_path))
    for place in (info, info_of("audio_caption", data)):
        batch = train_batches({"audio_caption": entry("audio_caption", place)})[0]
        assert isinstance(batch, CaptionBatch)
        assert batch.pixel_values is None
        assert batch.audio_values is not None
        assert batch.audio_values.shape == (3, 8, 1, 128, 204)
        assert all(caption == caption.lower() for caption in batch.captions)


def test_the_sound_of_clips_can_be_had_instead_of_their_frames(tmp_path: Path) -> None:
    write_video(tmp_path / "a.mp4", sound=tone(1.0), width=32, height=32)
    write_table(tmp_path / "a.csv", [("videoid", "page_dir", "name"), ("a", "", "x")])
    settings = entry("webvid", BuildInfo(anno_dir=str(tmp_path), videos_dir=str(tmp_path)))
    settings.vis_processor = VisProcessors()
    settings.audio_processor.train = AudioSettings(clips_per_video=2)
    batch = train_batches({"webvid": settings}, batch_size=1)[0]
    assert batch.audio_values is not None
    assert batch.audio_values.shape == (1, 2, 1, 128, 204)


def test_a_processor_for_another_kind_of_media_is_an_error(data: Path) -> None:
    settings = entry("webvid", info_of("webvid", data))
    settings.vis_processor = VisProcessors(train=ImageTrainSettings())
    with pytest.raises(ConfigError, match=r"webvid: vis_processor.*blip2_image_train.*is video"):
        train_batches({"webvid": settings})
    settings.vis_processor = VisProcessors()
    with pytest.raises(ConfigError, match=r"vis_processor.train: null given, and audio_proc"):
        train_batches({"webvid": settings})


def test_a_path_that_is_not_set_names_its_key(data: Path) -> None:
    settings = entry("webvid", BuildInfo(anno_dir=str(data / "webvid")))
    with pytest.raises(ConfigError, match=r"datasets.webvid: build_info.videos_dir is not set"):
        train_batches({"webvid": settings})


def test_sets_of_pictures_on_the_web_come_in_tars_only(tmp_path: Path) -> None:
    for name in ("cc_sbu", "laion"):
        with pytest.raises(ConfigError, match=rf"datasets.{name}: build_info.storage: .* tars"):
            train_batches({name: entry(name, BuildInfo(storage=str(tmp_path)))})


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
