"""What a file holds, and what is said of files that cannot be used."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from av.stream import Disposition
from PIL import Image

from tests import media
from video_llama.processors.media import NoSoundError, has_audio, probe
from video_llama.processors.settings import AudioSettings, ImageEvalSettings, VideoEvalSettings
from video_llama.types import ConfigError, MediaError

Use = Callable[[Any], object]
USES: dict[str, Use] = {
    "video": VideoEvalSettings(image_size=16).build(),
    "audio": AudioSettings().build(),
    "image": ImageEvalSettings(image_size=16).build(),
    "probe": probe,
}


def test_a_video_with_sound_is_described(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "a.mp4", sound=media.tone(2, channels=2))
    info = probe(str(path))
    assert (info.path, info.kind, info.has_video, info.has_audio) == (path, "video", True, True)
    assert (info.width, info.height, info.num_frames, info.fps) == (64, 48, 16, 8.0)
    assert (info.sample_rate, info.num_channels) == (16000, 2)
    assert (info.video_codec, info.audio_codec) == ("h264", "aac")
    assert info.duration == pytest.approx(2.0, abs=0.1)


def test_videos_without_sound_sounds_and_pictures_are_told_apart(tmp_path: Path) -> None:
    silent = media.write_video(tmp_path / "a.mp4")
    sound = media.write_audio(tmp_path / "a.wav", media.tone(1))
    picture = media.write_picture(tmp_path / "a.jpg")
    assert [probe(p).kind for p in (silent, sound, picture)] == ["video", "audio", "image"]
    assert [has_audio(p) for p in (silent, sound, picture)] == [False, True, False]
    assert (probe(picture).width, probe(picture).height) == (40, 30)


def test_cover_art_does_not_make_a_song_a_video(tmp_path: Path) -> None:
    cover = media.write_picture(tmp_path / "cover.jpg")
    with av.open(str(tmp_path / "song.mp3"), "w") as song, av.open(str(cover)) as art:
        track: Any = song.add_stream("libmp3lame", rate=16000, layout="mono")
        picture: Any = song.add_stream_from_template(art.streams.video[0])
        picture.disposition = Disposition.attached_pic
        for packet in art.demux():
            if packet.size:
                packet.stream = picture
                song.mux(packet)
        media.encode_sound(song, track, media.tone(1), 16000)
    assert (probe(tmp_path / "song.mp3").kind, has_audio(tmp_path / "song.mp3")) == ("audio", True)
    with pytest.raises(MediaError, match="no video track"):
        USES["video"](tmp_path / "song.mp3")


def test_tracks_in_an_unknown_codec_are_told(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "a.mkv", sound=media.tone(1))
    data = path.read_bytes()
    path.write_bytes(data.replace(b"V_MPEG4/ISO/AVC", b"V_MPEG9/ISO/AVC"))
    assert (probe(path).kind, probe(path).has_audio) == ("video", True)
    with pytest.raises(
        MediaError, match=r"cannot be decoded .tag V_MPEG9/ISO/AVC.*only its sound is heard"
    ):
        USES["video"](path)
    USES["audio"](path)
    path.write_bytes(data.replace(b"A_AAC", b"A_AAX"))
    assert not has_audio(path)
    with pytest.raises(MediaError, match="a codec that cannot be decoded") as error:
        USES["audio"](path)
    assert not isinstance(error.value, NoSoundError)


@pytest.mark.parametrize(
    ("name", "codec", "old", "tag"),
    [
        ("a.mp4", "libx264", {b"avc1": b"zzz1", b"avcC": b"zzzC"}, "zzz1"),
        ("a.mov", "mjpeg", {b"jpeg": b"jxxg"}, "jxxg"),
        ("a.avi", "mpeg4", {b"FMP4": b"QQQ4"}, "QQQ4"),
        ("a.mkv", "libx264", {b"V_MPEG4/ISO/AVC": b"V_MPEG9/ISO/AVC"}, "V_MPEG9/ISO/AVC"),
    ],
)
def test_a_clip_in_an_unknown_codec_does_not_become_a_sound(
    tmp_path: Path, name: str, codec: str, old: dict[bytes, bytes], tag: str
) -> None:
    pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    path = media.write_video(tmp_path / name, codec=codec, pix_fmt=pix_fmt, sound=media.tone(1))
    data = path.read_bytes()
    for known, unknown in old.items():
        data = data.replace(known, unknown)
    path.write_bytes(data)
    info = probe(path)
    assert (info.kind, info.has_video, info.has_audio) == ("video", True, True)
    assert info.video_codec is None
    with pytest.raises(MediaError, match=f"tag {tag}.*only its sound is heard"):
        USES["video"](path)
    USES["audio"](path)


def test_an_animated_gif_is_a_video_and_a_still_one_a_picture(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:], duration=100)
    frames[0].save(tmp_path / "b.gif")
    assert [probe(tmp_path / name).kind for name in ("a.gif", "b.gif")] == ["video", "image"]
    clip: Any = USES["video"](tmp_path / "a.gif")
    colours = clip.frames[:, :, 8, 8].T.int()
    assert (colours - torch.tensor([[255, 0, 0], [0, 0, 255]])).abs().max() <= 2


@pytest.mark.parametrize("use", USES)
def test_unusable_files_are_media_errors_with_the_path_as_given(use: str, tmp_path: Path) -> None:
    for name, path in media.broken_files(tmp_path).items():
        with pytest.raises(MediaError) as error:
            USES[use](str(path))
        assert error.value.path == path
        assert error.value.reason, name
        assert str(tmp_path) not in error.value.reason


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("empty.mp4", "the file is empty"),
        ("folder.mp4", "it is a folder"),
        ("missing.mp4", "there is no such file"),
        ("text.mp4", "not a media file"),
        ("headless.mp4", "its header is damaged"),
    ],
)
def test_the_reason_is_plain(name: str, reason: str, tmp_path: Path) -> None:
    with pytest.raises(MediaError, match=reason):
        probe(media.broken_files(tmp_path)[name])


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize(
    "name", ["pipe:0", "http://127.0.0.1:9/a.mp4", "-i", "a\0b", "x" * 5000, "\udcff", "concat:a|b"]
)
def test_names_are_only_ever_names_of_files(use: str, name: str) -> None:
    with pytest.raises(MediaError):
        USES[use](name)


@pytest.mark.parametrize("use", USES)
def test_a_pipe_does_not_hang(use: str, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.mp4")
    with pytest.raises(MediaError, match="a device or a pipe"):
        USES[use](tmp_path / "a.mp4")


def test_text_that_ffmpeg_would_draw_as_a_video_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "notes.txt"
    path.write_text("some notes\n" * 100)
    with pytest.raises(MediaError, match="it is text"):
        probe(path)


def test_a_playlist_is_not_followed(tmp_path: Path) -> None:
    media.write_video(tmp_path / "a.mp4")
    (tmp_path / "a.m3u8").write_text("#EXTM3U\n#EXTINF:1,\na.mp4\n#EXT-X-ENDLIST\n")
    with pytest.raises(MediaError):
        probe(tmp_path / "a.m3u8")


def test_a_file_that_may_not_be_read_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = media.write_video(tmp_path / "a.mp4")

    def refuse(*args: object, **kwargs: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)  # the superuser may read everything
    with pytest.raises(MediaError, match="it cannot be opened: permission denied"):
        probe(path)


@pytest.mark.parametrize("name", ["-i a b.mp4", "ünï 文 %03d 'x\".mp4", "raw \udcff.mp4", "file:a"])
def test_odd_file_names_work(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    shutil.copy(media.write_video(tmp_path / "a.mp4", sound=media.tone(1)), path)
    assert probe(path).has_audio
    USES["video"](path)
    USES["audio"](path)


@pytest.mark.parametrize("name", ["-y.mp4", "pipe:0", "http:a.mp4", "concat:a|b"])
def test_relative_names_work(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    media.write_video(tmp_path / "a.mp4", sound=media.tone(1)).rename(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    assert probe(name).num_frames == 16
    USES["video"](name)
    USES["audio"](name)


def test_a_picture_is_no_video_and_a_sound_no_video(tmp_path: Path) -> None:
    for name in ("a.jpg", "a.png", "a.bmp", "a.webp"):
        with pytest.raises(MediaError):
            USES["video"](media.write_picture(tmp_path / name))
    with pytest.raises(MediaError, match="it is a picture, a video was expected"):
        USES["video"](tmp_path / "a.jpg")
    with pytest.raises(MediaError, match="it has no video track"):
        USES["video"](media.write_audio(tmp_path / "a.wav", media.tone(1)))


def test_a_video_track_without_frames_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.mkv"
    with av.open(str(path), "w") as container:
        video: Any = container.add_stream("mpeg4", rate=8)
        video.width = video.height = 32
        audio: Any = container.add_stream("aac", rate=16000, layout="mono")
        media.encode_sound(container, audio, media.tone(1), 16000)
    with pytest.raises(MediaError, match="no frames"):
        USES["video"](path)
    USES["audio"](path)


def test_absurd_picture_sizes_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = media.write_video(tmp_path / "a.mp4")
    monkeypatch.setenv("VIDEO_LLAMA_MAX_FRAME_PIXELS", "1000")
    reason = "frames of 64x48 pixels are too large, at most 1000 pixels.*MAX_FRAME_PIXELS sets it"
    with pytest.raises(MediaError, match=reason):
        USES["video"](path)
    monkeypatch.setenv("VIDEO_LLAMA_MAX_FRAME_PIXELS", "many")
    with pytest.raises(ConfigError, match="VIDEO_LLAMA_MAX_FRAME_PIXELS: 'many' given"):
        USES["video"](path)


def test_missing_sound_can_be_told_from_a_broken_file(tmp_path: Path) -> None:
    with pytest.raises(NoSoundError, match="it has no sound track"):
        USES["audio"](media.write_video(tmp_path / "a.mp4"))
    with pytest.raises(MediaError) as error:
        USES["audio"](media.broken_files(tmp_path)["text.mp4"])
    assert not isinstance(error.value, NoSoundError)


def test_reading_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "a.mp4", sound=media.tone(1))
    path.chmod(stat.S_IRUSR)
    before = path.read_bytes()
    for use in ("video", "audio", "probe"):
        USES[use](path)
    assert path.read_bytes() == before
