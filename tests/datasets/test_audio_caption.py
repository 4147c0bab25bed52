"""Sounds with captions."""

from __future__ import annotations

from pathlib import Path

from tests.data_sets import (
    entry,
    info_of,
    train_batches,
    write_table,
)
from tests.media import tone, write_audio, write_video
from video_llama.datasets.base import BuildInfo, VisProcessors
from video_llama.processors.settings import AudioSettings
from video_llama.types import CaptionBatch


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
