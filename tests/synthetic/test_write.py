"""The written world: real files that the data sets and processors read, the same for every seed."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image

from tests.media import encode_sound
from video_llama.apps.cli.main import main
from video_llama.common.io import package_file
from video_llama.datasets.base import DATASETS, BuildInfo
from video_llama.datasets.loading import build_items, media_loader, read_records
from video_llama.datasets.prepare.check import check
from video_llama.processors.media import probe
from video_llama.processors.settings import AudioSettings, VideoEvalSettings
from video_llama.synthetic.draw import frame_times, render_frames
from video_llama.synthetic.media import SAMPLE_RATE, World, WorldItem, write_sound
from video_llama.synthetic.play import render_sound
from video_llama.synthetic.scene import Scene, Sight, Sound
from video_llama.synthetic.splits import SPLITS
from video_llama.synthetic.write import annotation_files, plan, write_world
from video_llama.text.templates import TEMPLATES
from video_llama.text.tokenizer import load_tokenizer
from video_llama.types import ConfigError, InstructionBatch

NUM_CLIPS = 16
QUESTIONS = "test/questions.json"
WORLD = World(seed=1, size=64)
SMALL = World(seed=4, size=32, fps=4.0)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world") / "data"
    write_world(out, num_clips=NUM_CLIPS, world=WORLD)
    return out


def entry(world: Path, name: str, split: str) -> Any:
    """The settings of a data set of the written world."""
    folder = world / split
    places = {
        "webvid": BuildInfo(anno_dir=f"{folder}/webvid", videos_dir=f"{folder}/clips"),
        "webvid_instruct": BuildInfo(
            anno_dir=f"{folder}/webvid_instruct.json", videos_dir=f"{folder}/clips"
        ),
        "webvid_instruct_zh": BuildInfo(
            anno_dir=f"{folder}/webvid_instruct_zh.json", videos_dir=f"{folder}/clips"
        ),
        "cc_sbu_align": BuildInfo(storage=f"{folder}/cc_sbu_align"),
        "llava_instruct": BuildInfo(
            anno_dir=f"{folder}/llava_instruct/llava_instruct.json",
            videos_dir=f"{folder}/llava_instruct/image",
        ),
        "audio_caption": BuildInfo(
            anno_dir=f"{folder}/audio_caption/audio_caption.json",
            videos_dir=f"{folder}/audio_caption/audio",
        ),
    }
    found = DATASETS.get(name)(build_info=places[name])
    found.num_video_query_token = 8
    return found


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize(
    "name",
    [
        "webvid",
        "webvid_instruct",
        "webvid_instruct_zh",
        "cc_sbu_align",
        "llava_instruct",
        "audio_caption",
    ],
)
def test_data_sets_read_what_was_written(world: Path, name: str) -> None:
    settings = entry(world, name, "train")
    loader = media_loader(settings, split="train")
    records = read_records(settings, settings.build_info)
    report = check(name, records, loader, sample=None, num_workers=0)
    assert report.is_usable, report.findings
    expected = {"webvid": NUM_CLIPS, "cc_sbu_align": NUM_CLIPS, "audio_caption": NUM_CLIPS // 2}
    assert report.num_items == expected.get(name, report.num_items) > 0
    tokenizer = load_tokenizer(package_file("presets/tiny/llama"))
    template = TEMPLATES.get("llama_v2")
    items = build_items(name, settings, split="train", tokenizer=tokenizer, template=template)
    assert items is not None
    generator = torch.Generator().manual_seed(0)
    batch = items.collate([items.load(i, generator) for i in range(3)], [], None)
    assert len(batch.item_ids) == 3
    if isinstance(batch, InstructionBatch):
        assert (batch.labels >= 0).any(dim=1).all()
    else:
        assert all(batch.captions)


@pytest.mark.parametrize("split", SPLITS)
def test_every_split_has_its_clips_and_questions(world: Path, split: str) -> None:
    clips = sorted((world / split / "clips").rglob("*.mp4"))
    shares = {"train": 1, "valid": 0.25, "test": 0.5, "test_pairs": 0.25}
    assert len(clips) == NUM_CLIPS * shares[split]
    if split == "train":
        assert not (world / split / "questions.json").exists()
        return
    asked = json.loads((world / split / "questions.json").read_text("utf-8"))
    assert {(world / split / question["path"]) for question in asked} <= set(clips)
    assert len({question["id"] for question in asked}) == len(asked)
    for question in asked:
        assert question["answer"] in question["options"]
        assert question["chance"] == 1 / len(question["options"])
        assert question["modality"] in ("picture", "sound")


def test_clips_are_what_their_scene_says(world: Path) -> None:
    video = VideoEvalSettings(image_size=56).build()
    audio = AudioSettings(clips_per_video=2).build()
    for number in range(6):
        item = WorldItem(world=WORLD, source="clips", split="train", number=number)
        path, scene = world / item.path, item.scene
        info = probe(path)
        assert (info.height, info.width) == item.height_width
        assert (info.video_codec, info.audio_codec) == ("h264", "aac")
        assert info.fps == 8
        assert info.duration == pytest.approx(scene.duration, abs=0.05)
        clip = video(path)
        times = [index / clip.num_frames_total for index in clip.indices]
        drawn = render_frames(scene, item.render_seed, height=56, width=56, times=times)
        square = item.height_width[0] == item.height_width[1]
        difference = np.abs(clip.frames.permute(1, 2, 3, 0).numpy().astype(int) - drawn)
        assert difference.mean() < 6 or not square
        sound = audio(path)
        assert sound.duration == pytest.approx(scene.duration, abs=0.1)
        assert torch.isfinite(sound.values).all()


def test_same_seed_gives_the_same_bytes_whatever_the_number_of_processes(tmp_path: Path) -> None:
    for name, workers in (("one", 1), ("two", 2)):
        write_world(tmp_path / name, num_clips=8, world=SMALL, num_workers=workers)
    one, two = files(tmp_path / "one"), files(tmp_path / "two")
    assert one.keys() == two.keys()
    assert [name for name in one if one[name] != two[name]] == []
    other = annotation_files(plan(8, replace(SMALL, seed=5)))
    assert [name for name, text in other.items() if one[name] == text.encode()] == []


def test_more_clips_begin_with_the_same_clips() -> None:
    few, many = plan(4, SMALL), plan(9, SMALL)
    for key, items in few.items():
        assert many[key][: len(items)] == items
        assert [i.scene for i in many[key][: len(items)]] == [i.scene for i in items]


def test_some_splits_alone_are_as_among_the_others() -> None:
    alone, among = plan(9, SMALL, splits=("test",)), plan(9, SMALL)
    assert alone == {("test", "clips"): among["test", "clips"]}


def test_clips_for_training_are_asked_about_nothing_that_is_heard(world: Path) -> None:
    for name in ("webvid_instruct", "webvid_instruct_zh"):
        text = (world / "train" / f"{name}.json").read_text("utf-8")
        assert "hear" not in text
        assert "silent" not in text
        assert "听" not in text


@pytest.mark.parametrize(
    ("suffix", "codec", "sound_codec", "fps", "size", "duration"),
    [
        (".mp4", "mpeg4", "aac", 12, (240, 320), 6.0),
        (".mkv", "libx264", "libmp3lame", 25, (180, 180), 2.0),
        (".webm", "libvpx", "libopus", 10, (120, 90), 3.0),
    ],
)
def test_clips_made_by_other_means_look_and_sound_alike(
    tmp_path: Path,
    suffix: str,
    codec: str,
    sound_codec: str,
    fps: int,
    size: tuple[int, int],
    duration: float,
) -> None:
    scene = Scene(
        sights=(Sight(kind="bell", colour="red", motion="left", speed=0.4),),
        sounds=(Sound(kind="bell", loudness=0.5),),
        duration=duration,
    )
    times = frame_times(duration, fps)
    frames = render_frames(scene, 0, height=size[0], width=size[1], times=times)
    path = tmp_path / f"clip{suffix}"
    write_foreign(path, frames, render_sound(scene, 0, rate=48_000), fps, codec, sound_codec)
    clip = VideoEvalSettings(image_size=56).build()(path)
    assert clip.indices == [i * len(times) // 8 for i in range(8)]
    assert probe(path).sample_rate == 48_000
    exact = render_frames(
        scene, 0, height=size[0], width=size[1], times=[times[i] for i in clip.indices]
    )
    expected = np.stack([np.asarray(Image.fromarray(f).resize((56, 56))) for f in exact])
    seen = clip.frames.permute(1, 2, 3, 0).numpy()
    assert np.abs(seen.astype(int) - expected).mean() < 6
    sounds = AudioSettings().build()
    own = tmp_path / "own.wav"
    write_sound(own, render_sound(scene, 0, rate=SAMPLE_RATE), rate=SAMPLE_RATE)
    ours, theirs = sounds(own).values, sounds(path).values
    # Below 4 kHz, where every encoder keeps what is there.
    bands = slice(0, 80)
    assert (ours[:, :, bands] - theirs[:, :, bands]).abs().mean() < 0.35


def write_foreign(
    path: Path, frames: np.ndarray, sound: np.ndarray, fps: int, codec: str, sound_codec: str
) -> None:
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream(codec, rate=fps)
        video.height, video.width, video.pix_fmt = *frames.shape[1:3], "yuv420p"
        video.bit_rate = 2_000_000
        audio: Any = container.add_stream(sound_codec, rate=48_000, layout="mono")
        for frame in frames:
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))
        encode_sound(container, audio, sound[None], 48_000)


def test_an_existing_folder_is_kept(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "mine.txt").write_text("mine")
    with pytest.raises(ConfigError, match="exists already"):
        write_world(tmp_path / "data", num_clips=1, world=SMALL)
    assert files(tmp_path) == {"data/mine.txt": b"mine"}


def test_a_world_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("video_llama.synthetic.media.write_clip", fail)
    with pytest.raises(OSError, match="no space left"):
        write_world(tmp_path / "data", num_clips=1, world=SMALL)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("num_clips", "world", "message"),
    [
        (0, SMALL, "num_clips: 0"),
        (1, replace(SMALL, seed=-1), "seed: -1"),
        (1, replace(SMALL, size=33), "size: 33"),
        (1, replace(SMALL, fps=0.5), "fps: 0.5"),
    ],
)
def test_numbers_out_of_range_are_named(
    tmp_path: Path, num_clips: int, world: World, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        write_world(tmp_path / "data", num_clips=num_clips, world=world)


def test_command_writes_a_world(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "data"
    argv = ["data", "synth", "--out", str(out), "--num-clips", "2", "--seed", "4"]
    argv += ["--size", "32", "--fps", "4", "--workers", "1"]
    assert main(argv) == 0
    captured = capsys.readouterr()
    assert f"{out}: " in captured.out
    described = json.loads((out / "world.json").read_text("utf-8"))
    assert described["world"] == {"seed": 4, "size": 32, "fps": 4.0}
    assert main(argv) == 1
    assert "exists already" in capsys.readouterr().err
