"""What a user may change: the last answer, the last turn, the files, and their sound."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from tests.media import tone, write_video
from tests.tiny_chat import SPOKEN, VICUNA, answer, media_files, tiny_chat
from video_llama.chat.answer import AnswerReport
from video_llama.chat.engine import Chat
from video_llama.models.generation import generate as engine
from video_llama.types import MediaError, RequestError

DEAF = "model.equip_audio_branch=false"


@pytest.fixture(scope="module")
def chat() -> Chat:
    return tiny_chat()


def test_another_answer_takes_the_place_of_the_last_one(chat: Chat) -> None:
    session = chat.start(image=media_files()["picture"])
    answer(session, "First?")
    before = answer(session, "Second?", **SPOKEN)
    after = "".join(session.regenerate(**{**SPOKEN, "seed": 2}))
    assert after != before
    assert [turn.question for turn in session.history] == ["First?", "Second?"]
    assert session.history[1].answer == after
    assert len(session.history[0].media) == 1
    assert "".join(session.regenerate(**SPOKEN)) == before


def test_the_old_answer_stays_until_there_is_another(chat: Chat) -> None:
    session = chat.start()
    before = answer(session)
    with pytest.raises(RequestError, match="temperature"):
        session.regenerate(temperature=-1)
    pieces = session.regenerate(**SPOKEN)
    assert session.history[0].answer == before
    next(pieces)
    assert session.history[0].answer == before
    session.stop()
    rest = "".join(pieces)
    assert session.history[0].answer != before
    assert session.history[0].answer.endswith(rest)


def test_a_stop_before_the_first_word_keeps_the_old_answer(chat: Chat) -> None:
    session = chat.start()
    before = answer(session)
    pieces: list[str] = []
    thread = threading.Thread(target=lambda: pieces.extend(session.regenerate(**SPOKEN)))
    with chat.answerer.lock.turn():  # somebody else has the model until the stop
        thread.start()
        while not chat.num_waiting:
            assert thread.is_alive()
        session.stop()
    thread.join()
    assert pieces == []
    assert session.report.stopped
    assert session.history[0].answer == before


def test_nothing_can_be_written_again_or_taken_back_at_the_beginning(chat: Chat) -> None:
    session = chat.start()
    for change in (session.regenerate, session.undo):
        with pytest.raises(RequestError, match="nothing has been asked yet"):
            change()


def test_a_turn_that_is_taken_back_leaves_its_media_for_the_next(chat: Chat) -> None:
    session = chat.start(image=media_files()["picture"])
    expected = answer(session, "What is it?")
    assert session.undo() == "What is it?"
    assert session.history == []
    assert len(session.media) == 1
    assert answer(session, "What is it?") == expected
    assert len(session.history[0].media) == 1


def test_a_new_start_forgets_all_or_all_but_the_media(chat: Chat) -> None:
    session = chat.start(image=media_files()["picture"])
    expected = answer(session)
    session.restart(keep_media=True)
    assert (len(session.history), len(session.media)) == (0, 1)
    assert answer(session) == expected
    session.restart()
    assert (session.history, session.media) == ([], [])
    assert session.num_bytes == 0
    assert answer(session) == answer(chat.start())


def test_a_file_that_is_taken_out_was_never_there(chat: Chat) -> None:
    files = media_files()
    session = chat.start(image=files["picture"])
    answer(session)
    item = session.add(files["wav"])
    answer(session, "And now?")
    session.remove(item)
    assert [len(turn.media) for turn in session.history] == [1, 0]
    assert len(session.media) == 1
    with pytest.raises(RequestError, match=r"sound.wav is not in this session"):
        session.remove(item)
    answer(session, "And then?")
    assert "open your ears" not in session.report.prompt


def test_sound_is_switched_without_looking_again(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = media_files()
    session = chat.start(video=files["talkie"], use_audio=False)
    item = session.media[0]
    assert item.spectrograms is None
    silent = answer(session)
    seen: list[object] = []
    monkeypatch.setattr(chat.model, "encode_video", seen.append)
    session.set_audio(item, True)
    assert item.sound_used
    assert [media.kind for media in item.prompt_media] == ["audio", "video"]
    heard = "".join(session.regenerate(temperature=0.0, max_new_tokens=8))
    assert "open your ears" in session.report.prompt
    monkeypatch.setattr(chat.model, "encode_audio", seen.append)
    session.set_audio(item, False)
    assert "".join(session.regenerate(temperature=0.0, max_new_tokens=8)) == silent
    session.set_audio(item, True)
    assert "".join(session.regenerate(temperature=0.0, max_new_tokens=8)) == heard
    assert seen == []


def test_sound_that_is_not_there_cannot_be_switched_on(chat: Chat) -> None:
    files = media_files()
    session = chat.start(video=files["silent"], use_audio=False)
    item = session.media[0]
    assert item.notice == ""
    session.set_audio(item, True)
    assert not item.sound_used
    assert "silent.mp4 has no sound track" in item.notice
    session.set_audio(item, False)
    assert item.notice == ""
    for name in ("picture", "wav"):
        other = session.add(files[name])
        with pytest.raises(RequestError, match="is no clip"):
            session.set_audio(other, False)
    with pytest.raises(RequestError, match="is not in this session"):
        chat.start().set_audio(item, True)
    deaf = tiny_chat(DEAF).start(video=files["talkie"], use_audio=False)
    deaf.set_audio(deaf.media[0], True)
    assert "no audio branch" in deaf.media[0].notice


def test_a_file_is_encoded_once_as_long_as_it_is_the_same(
    chat: Chat, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_video(tmp_path / "clip.mp4", num_frames=12, sound=tone(1.0))
    session = chat.start()
    first = session.add(path)
    second = session.add(path, use_audio=False)
    assert second is not first
    assert second.picture is first.picture
    assert not second.sound_used
    assert first.sound_used
    assert session.num_bytes < 2 * sum(tensor.nbytes for tensor in first.tensors)
    assert session.add(path, num_frames=3).picture is not first.picture
    assert session.add(path, "audio").kind == "audio"
    write_video(path, num_frames=20, sound=tone(1.0))
    os.utime(path, ns=(1, 1))
    assert session.add(path).picture is not first.picture
    assert answer(session)


def test_media_that_can_never_fit_are_refused(chat: Chat, monkeypatch: pytest.MonkeyPatch) -> None:
    session, picture = chat.start(), media_files()["picture"]
    for _ in range(3):
        session.add(picture)
    context = chat.answerer.prompts.num_media_tokens(session.media) + 1
    monkeypatch.setattr(chat.model.language_model.config, "max_position_embeddings", context)
    with pytest.raises(RequestError, match=rf"files take \d+ tokens .* {context}; take one out"):
        session.add(picture)
    assert len(session.media) == 3
    session.remove(session.media[0])
    session.add(picture)
    assert len(session.media) == 3


def test_progress_is_told_in_order(chat: Chat, tmp_path: Path) -> None:
    told: list[tuple[float, str]] = []
    chat.start(video=media_files()["talkie"], progress=lambda *step: told.append(step))
    assert [text for _, text in told] == [
        "reading talkie.mp4",
        "listening",
        "looking",
        "done",
    ]
    shares = [share for share, _ in told]
    assert shares == sorted(shares)
    assert (shares[0], shares[-1]) == (0, 1)
    with pytest.raises(MediaError):
        chat.start(video=tmp_path / "none.mp4", progress=lambda *step: told.append(step))
    assert len(told) == 4


def test_what_the_model_sees_and_hears_can_be_shown(chat: Chat) -> None:
    session = chat.start(video=media_files()["talkie"])
    item = session.media[0]
    frames, sounds = item.frame_pictures(), item.spectrogram_pictures()
    assert len(frames) == len(item.frame_seconds) == 8
    size = chat.encoder.processing.video.image_size
    assert {(frame.shape, frame.dtype.name) for frame in frames} == {((size, size, 3), "uint8")}
    assert frames[0][size // 6, size // 6, 0] > 150 > frames[0][size // 6, size // 6, 2]  # red
    assert len(sounds) == len(item.sound_spans) == 8
    assert sounds[0].shape == (128, 204, 3)
    # A low tone is bright in the lower half.
    assert sounds[0][64:].max() == sounds[0].max() > 200
    assert sounds[0][:32].mean() < sounds[0][96:].mean()
    picture = session.add(media_files()["picture"])
    assert len(picture.frame_pictures()) == 1
    assert picture.spectrogram_pictures() == []
    assert session.add(media_files()["wav"]).frame_pictures() == []


def test_a_stop_mark_that_comes_in_parts_never_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    chat = tiny_chat(*VICUNA)
    tokenizer = chat.model.tokenizer
    pieces = ["\u2581a", "#", "\u2581b", "#", "#", "#", "\u2581c"]
    ids = [tokenizer.convert_tokens_to_ids(piece) for piece in pieces]
    assert tokenizer.unk_token_id not in ids
    said = iter(ids)
    monkeypatch.setattr(engine._Sampler, "choose", lambda *_: torch.tensor([next(said)]))
    session = chat.start()
    shown = list(session.ask("What?"))
    assert "".join(shown) == session.history[0].answer == "a# b"
    assert not any("##" in piece for piece in shown)
    assert session.report.finished
    assert session.report.num_tokens == 6


def test_a_report_knows_its_speed() -> None:
    report = AnswerReport(num_tokens=11, timings={"first_token": 1.0, "generate": 3.0})
    assert report.tokens_per_second == 5
    assert AnswerReport().tokens_per_second == 0
