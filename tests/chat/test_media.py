"""Files of a chat: what is taken of each kind, in which order, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.deadly import decode_or_die
from tests.media import tone, write_audio, write_timed_sound, write_video
from tests.random_tiny import random_tiny
from tests.reference import SHARED, needs_shared
from tests.tiny_chat import answer, media_files, tiny_chat
from video_llama.chat.batch import BatchAnswerer
from video_llama.chat.engine import Chat
from video_llama.chat.media import MediaEncoder, MediaItem, MediaProcessing
from video_llama.chat.requests import BatchRequest, RequestMedia
from video_llama.config.build import build_model
from video_llama.config.load import load_config
from video_llama.types import ConfigError, MediaError, RequestError

DEAF = "model.equip_audio_branch=false"
SOUND, FRAMES = 4, 8
"""Tokens of a sound and of a picture or clip in the tiny preset."""


@pytest.fixture(scope="module")
def chat() -> Chat:
    return tiny_chat()


def kinds(item: MediaItem) -> list[str]:
    return [part.kind for part in item.prompt_media]


@pytest.mark.parametrize(
    ("name", "parts", "has_sound"),
    [
        ("talkie", ["audio", "video"], True),
        ("silent", ["video"], False),
        ("portrait", ["audio", "video"], True),
        ("turned", ["video"], False),
        ("picture", ["image"], None),
        ("wav", ["audio"], True),
        ("flac", ["audio"], True),
        ("mp3", ["audio"], True),
    ],
)
def test_every_kind_of_file_is_taken_for_what_it_is(
    chat: Chat, name: str, parts: list[str], has_sound: bool | None
) -> None:
    session = chat.start()
    item = session.add(media_files()[name])
    assert kinds(item) == parts
    assert item.has_sound is has_sound
    assert item.sound_used is ("audio" in parts)
    assert [encoded.tokens.shape for encoded in item.encoded] == [
        (1, SOUND if part == "audio" else FRAMES, 64 * 2) for part in parts
    ]
    assert answer(session)
    assert session.report.prompt.count("<ImageHere>") == sum(
        p.num_tokens for p in item.prompt_media
    )


def test_a_clip_without_sound_says_so(chat: Chat) -> None:
    session = chat.start(video=media_files()["silent"])
    answer(session)
    assert session.media[0].notice in session.report.notices
    assert "silent.mp4 has no sound track" in session.media[0].notice


def test_sound_that_is_not_wanted_is_not_heard_and_not_missed(chat: Chat) -> None:
    for name in ("talkie", "silent"):
        item = chat.start(video=media_files()[name], use_audio=False).media[0]
        assert kinds(item) == ["video"]
        assert not item.sound_used
        assert item.notice == ""


def test_a_sound_comes_before_its_frames(chat: Chat) -> None:
    session = chat.start(video=media_files()["talkie"])
    answer(session, "What happens?")
    prompt = session.report.prompt
    assert prompt.index("open your ears") < prompt.index("open your eyes") < prompt.index("frames")
    assert "just seen and heard. What happens?" in prompt


def test_several_files_stand_in_the_order_given(chat: Chat) -> None:
    session, files = chat.start(), media_files()
    for name in ("picture", "wav", "silent"):
        session.add(files[name])
    answer(session)
    prompt = session.report.prompt
    assert prompt.index("<Image>") < prompt.index("open your ears") < prompt.index("<Video>")


def test_media_of_a_later_turn_lead_its_question(chat: Chat) -> None:
    session = chat.start()
    answer(session, "First question?")
    session.add(media_files()["picture"])
    answer(session, "Second question?")
    prompt = session.report.prompt
    assert prompt.index("First question?") < prompt.index("<Image>")
    assert prompt.index("<Image>") < prompt.index("Second question?")


def test_frames_and_segments_can_be_chosen(chat: Chat) -> None:
    item = chat.start(video=media_files()["talkie"], num_frames=5, num_clips=2).media[0]
    assert item.frames is not None
    assert item.spectrograms is not None
    assert item.frames.shape[1] == len(item.frame_seconds) == 5
    assert item.spectrograms.shape[0] == len(item.sound_spans) == 2
    assert "5 frames sampled at" in item.prompt_media[1].message


def test_a_short_clip_gives_all_of_its_frames(chat: Chat, tmp_path: Path) -> None:
    item = chat.start(video=write_video(tmp_path / "short.mp4", num_frames=3)).media[0]
    assert len(item.frame_seconds) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_frames": 33}, "33.*max_frame_pos.*32"),
        ({"num_clips": 9}, "9.*max_audio_clips.*8"),
        ({"num_frames": 0}, "at least 1 expected"),
        ({"num_clips": -1}, "at least 1 expected"),
        ({"num_clips": 99_999_999_999}, "99999999999.*max_audio_clips.*8"),
    ],
)
def test_more_than_the_model_has_positions_for_is_refused(
    chat: Chat, tmp_path: Path, options: dict[str, int], message: str
) -> None:
    clip = write_video(tmp_path / "long.mp4", num_frames=40, sound=tone(1.0))
    session = chat.start()
    with pytest.raises(ConfigError, match=message):
        session.add(clip, **options)
    assert session.media == []


@pytest.mark.parametrize("option", ["num_frames", "num_clips"])
def test_stretched_positions_have_an_end_too(option: str) -> None:
    session = tiny_chat("model.interpolate_positions=true").start()
    with pytest.raises(ConfigError, match="99999999999 given, at most 1024 expected"):
        session.add(media_files()["talkie"], **{option: 99_999_999_999})


def test_a_model_of_shapes_only_is_no_chat() -> None:
    with pytest.raises(RequestError, match="meta given, which has shapes only"):
        tiny_chat("run.device=meta")


def test_what_the_model_sees_and_hears_can_be_shown(chat: Chat) -> None:
    files = media_files()
    for name, count in (("talkie", 8), ("picture", 1)):
        frames = chat.encoder.encode(files[name]).frames
        assert frames is not None
        assert frames.shape == (3, count, 84, 84)
        assert frames.dtype == torch.uint8
        red, green, blue = frames[:, 0, 5, 5].tolist()
        assert red > 180
        assert max(green, blue) < 90
    heard = chat.encoder.encode(files["wav"])
    assert heard.frames is None
    assert heard.spectrograms is not None
    assert heard.spectrograms.shape == (8, 1, 128, 204)
    assert heard.sound_spans[0] == (0.0, 2.0)
    assert set(heard.timings) == {"decode", "encode"}
    assert heard.timings["decode"] > 0


def test_only_the_sound_of_a_clip_can_be_taken(chat: Chat) -> None:
    item = chat.start(audio=media_files()["talkie"]).media[0]
    assert kinds(item) == ["audio"]
    assert item.frames is None


@pytest.mark.parametrize(
    ("kind", "name", "message"),
    [
        ("video", "picture", "picture"),
        ("video", "wav", "no video track"),
        ("image", "talkie", "not a picture|picture was expected"),
        ("image", "wav", "not a picture|picture was expected"),
        ("audio", "silent", "no sound"),
        ("audio", "picture", "picture|no sound"),
    ],
)
def test_a_file_of_another_kind_than_asked_for_is_an_error(
    chat: Chat, kind: str, name: str, message: str
) -> None:
    with pytest.raises(MediaError, match=message) as raised:
        chat.start(**{kind: media_files()[name]})
    assert raised.value.path == media_files()[name]


def test_a_model_without_audio_branch_refuses_sounds_and_watches_clips() -> None:
    chat, files = tiny_chat(DEAF), media_files()
    session = chat.start(video=files["talkie"])
    assert kinds(session.media[0]) == ["video"]
    assert session.media[0].has_sound
    assert not session.media[0].sound_used
    assert "has sound, but this model has no audio branch" in session.media[0].notice
    with pytest.raises(RequestError, match=r"no audio branch.*equip_audio_branch=true"):
        session.add(files["wav"])
    with pytest.raises(RequestError, match="no audio branch"):
        chat.start(audio=files["talkie"])
    assert len(session.media) == 1
    assert answer(session)


def test_a_sound_too_short_to_hear_is_an_error_that_a_clip_can_do_without(
    chat: Chat, tmp_path: Path
) -> None:
    with pytest.raises(MediaError):
        chat.start(audio=write_audio(tmp_path / "click.wav", tone(0.01)))
    assert answer(chat.start(audio=write_audio(tmp_path / "short.wav", tone(0.5))))


def test_media_are_read_as_configured() -> None:
    cfg = load_config(
        random_tiny(),
        [
            "datasets.webvid.vis_processor.train.n_frms=3",
            "datasets.webvid.vis_processor.train.name=alpro_video_train",
            "datasets.webvid.vis_processor.train.sampling=headtail",
            "datasets.webvid.vis_processor.train.start=1",
            "datasets.webvid.audio_processor.train.clips_per_video=2",
        ],
    )
    chat = Chat(build_model(cfg))
    processing = chat.encoder.processing
    assert (processing.video.n_frms, processing.video.start) == (3, 1.0)
    assert processing.audio.clips_per_video == 2
    first, second = (chat.encoder.encode(media_files()["talkie"]) for _ in range(2))
    assert first.frame_seconds == second.frame_seconds
    assert len(first.frame_seconds) == 3
    assert min(first.frame_seconds) >= 1


def test_a_model_without_configuration_reads_media_as_the_original() -> None:
    model = build_model(load_config(random_tiny()))
    model.configuration = None
    processing = MediaProcessing.of(model.settings, model.configuration)
    assert (processing.video.n_frms, processing.video.image_size) == (8, 84)
    assert processing.audio.clips_per_video == 8


def test_a_file_that_ends_its_decoder_costs_one_error(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("video_llama.chat.media.decode_file", decode_or_die)
    bad = write_video(tmp_path / "deadly.mp4", num_frames=12)
    session = chat.start(video=media_files()["talkie"])
    for _ in range(2):
        with pytest.raises(MediaError, match=r"deadly\.mp4: .*SIGSEGV"):
            session.add(bad)
    assert session.add(media_files()["picture"]).kind == "image"
    requests = [
        BatchRequest(n, "What?", (RequestMedia(path),), {"max_new_tokens": 2})
        for n, path in enumerate((bad, media_files()["silent"]))
    ]
    first, second = BatchAnswerer(chat).answer(requests)
    assert "SIGSEGV" in first.error
    assert second.answer is not None
    assert answer(session)


def test_a_clip_whose_sound_cannot_be_used_is_answered_from_its_frames(
    chat: Chat, tmp_path: Path
) -> None:
    click = tone(0.01, 48000)
    path = write_timed_sound(tmp_path / "click.mkv", click, num_frames=12, codec="pcm_s16le")
    session = chat.start(video=path)
    (item,) = session.media
    assert kinds(item) == ["video"]
    assert item.has_sound
    assert "the sound of click.mkv cannot be used: " in item.notice
    session.set_audio(item, False)
    assert item.notice == ""
    session.set_audio(item, True)
    assert not item.sound_used
    assert "cannot be used" in item.notice
    quiet = chat.start(video=path, use_audio=False)
    assert quiet.media[0].notice == ""
    quiet.set_audio(quiet.media[0], True)
    assert "cannot be used" in quiet.media[0].notice
    assert answer(quiet)


def test_the_worker_reads_what_the_process_itself_reads(chat: Chat) -> None:
    own = MediaEncoder(chat.model, in_worker=False)
    for name in ("talkie", "picture", "wav"):
        here, there = own.encode(media_files()[name]), chat.encoder.encode(media_files()[name])
        assert [e.media for e in here.encoded] == [e.media for e in there.encoded]
        for mine, other in zip(here.encoded, there.encoded, strict=True):
            assert torch.equal(mine.tokens, other.tokens)


@needs_shared
@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("dog_barking.mp4", ["audio", "video"]),
        ("silence_girl.mp4", ["video"]),
        ("Statue_of_Liberty.jpg", ["image"]),
        ("bird_audio.wav", ["audio"]),
    ],
)
def test_real_files_are_answered_about(chat: Chat, name: str, parts: list[str]) -> None:
    session = chat.start()
    assert kinds(session.add(SHARED / "media" / name)) == parts
    assert answer(session)
