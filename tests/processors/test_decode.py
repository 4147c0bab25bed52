"""A clip with good frames is used, whatever is wrong with its sound."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import media
from video_llama.processors.decode import decode_file
from video_llama.processors.media import NoSoundError
from video_llama.processors.settings import AudioSettings, ImageEvalSettings, VideoEvalSettings
from video_llama.types import MediaError

PROCESSORS: dict[str, Any] = {
    "image": ImageEvalSettings(image_size=16).build(),
    "video": VideoEvalSettings(image_size=16).build(),
    "audio": AudioSettings().build(),
}


def clip(path: Path, seconds: float, **settings: Any) -> Path:
    tone = media.tone(seconds, 48000)
    return media.write_timed_sound(path, tone, num_frames=100, **settings)


def test_a_picture_a_clip_and_a_sound_are_read_whole(tmp_path: Path) -> None:
    picture = decode_file(media.write_picture(tmp_path / "a.png"), **PROCESSORS)
    assert (picture.kind, picture.clip, picture.sound) == ("image", None, None)
    assert picture.picture is not None
    assert picture.picture.shape == (3, 16, 16)
    sound = decode_file(media.write_audio(tmp_path / "a.wav", media.tone(1)), **PROCESSORS)
    assert (sound.kind, sound.clip, sound.picture, sound.notice) == ("audio", None, None, "")
    assert sound.sound is not None
    both = decode_file(clip(tmp_path / "a.mp4", 4), **PROCESSORS)
    assert (both.kind, both.picture, both.notice) == ("video", None, "")
    assert both.clip is not None
    assert both.sound is not None
    assert both.clip.frames.shape == (3, 8, 16, 16)


def test_what_is_not_wanted_is_not_read(tmp_path: Path) -> None:
    path = clip(tmp_path / "a.mp4", 4)
    assert decode_file(path, video=PROCESSORS["video"]).sound is None
    assert decode_file(path, audio=PROCESSORS["audio"]).clip is None
    taken_for_sound = decode_file(path, "audio", audio=PROCESSORS["audio"])
    assert (taken_for_sound.kind, taken_for_sound.clip) == ("audio", None)


@pytest.mark.parametrize(
    ("name", "codec", "seconds", "reason"),
    [
        ("a.mkv", "pcm_s16le", 0.0, "its sound track has no samples"),
        ("a.mkv", "pcm_s16le", 0.01, "the sound lasts 10 ms, at least 25 ms are needed"),
        ("a.mov", "pcm_s16le", 0.01, "the sound lasts 10 ms, at least 25 ms are needed"),
        ("a.mkv", "flac", 0.02, "the sound lasts 20 ms, at least 25 ms are needed"),
    ],
)
def test_an_empty_or_short_sound_is_a_notice(
    tmp_path: Path, name: str, codec: str, seconds: float, reason: str
) -> None:
    path = clip(tmp_path / name, seconds, codec=codec)
    read = decode_file(path, **PROCESSORS)
    assert read.clip is not None
    assert read.clip.num_frames_total == 100
    assert (read.sound, read.notice) == (None, reason)
    with pytest.raises(NoSoundError, match=reason):
        PROCESSORS["audio"](path)


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_paused_sound_is_used(tmp_path: Path, name: str) -> None:
    read = decode_file(clip(tmp_path / name, 2, pause=(1.0, 1.5)), **PROCESSORS)
    assert read.sound is not None
    assert read.sound.duration == pytest.approx(3.5, abs=0.05)
    assert read.notice == ""


@pytest.mark.parametrize(
    ("codec", "reason"),
    [
        (b"A_AC3", "its sound is damaged"),  # none of the packets can be decoded
        (b"A_ABC", "its sound is in a codec that cannot be decoded"),
    ],
)
def test_a_damaged_sound_leaves_the_frames(tmp_path: Path, codec: bytes, reason: str) -> None:
    path = clip(tmp_path / "a.mkv", 4, codec="aac")
    path.write_bytes(path.read_bytes().replace(b"A_AAC", codec))
    read = decode_file(path, **PROCESSORS)
    assert read.clip is not None
    assert read.sound is None
    assert read.notice.startswith(reason)


def test_an_absent_sound_is_told(tmp_path: Path) -> None:
    read = decode_file(media.write_video(tmp_path / "a.mp4"), **PROCESSORS)
    assert (read.sound, read.notice) == (None, "it has no sound track")


def test_the_first_channels_silence_is_a_notice(tmp_path: Path) -> None:
    tones = media.tone(4, 48000, channels=2)
    tones[0] = 0
    path = media.write_timed_sound(
        tmp_path / "a.mkv", tones, codec="flac", layout="stereo", num_frames=100
    )
    read = decode_file(path, **PROCESSORS)
    assert read.sound is not None
    assert "only the first of its 2 channels is heard" in read.notice


def test_without_good_frames_a_clip_is_an_error(tmp_path: Path) -> None:
    path = media.broken_files(tmp_path)["headless.mp4"]
    with pytest.raises(MediaError):
        decode_file(path, **PROCESSORS)
    with pytest.raises(MediaError, match="no such file"):
        decode_file(tmp_path / "b.mp4", **PROCESSORS)
    empty = media.write_wav_header_only(tmp_path / "a.wav")
    with pytest.raises(MediaError, match=r"no samples|header is damaged"):
        decode_file(empty, **PROCESSORS)
