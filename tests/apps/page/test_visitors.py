"""Conversations of the page: kept while they are used, freed when their visitor has gone."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.tiny_chat import SPOKEN, media_files, tiny_chat
from video_llama.apps.page.options import ServerOptions
from video_llama.apps.page.uploads import Uploads
from video_llama.apps.page.visitors import Conversation, Conversations
from video_llama.types import RequestError

SHORT = {"temperature": 0.0, "max_new_tokens": 4}


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def conversations(clock: Clock) -> Conversations:
    return Conversations(tiny_chat(), most=3, grace=60, idle=600, clock=clock)


def test_a_visitor_keeps_its_conversation_and_shares_it_with_nobody(
    conversations: Conversations,
) -> None:
    one, other = conversations.of("a"), conversations.of("b")
    assert conversations.of("a") is one
    assert one.session is not other.session


def test_a_closed_page_frees_its_conversation_after_the_grace(
    conversations: Conversations, clock: Clock
) -> None:
    conversation = conversations.of("a")
    conversation.add(media_files()["picture"], use_audio=True)
    assert conversation.session.num_bytes
    conversations.arrive("a")
    conversations.leave("a")
    clock.now = 59
    conversations.free_stale()
    assert len(conversations) == 1
    clock.now = 61
    conversations.free_stale()
    assert len(conversations) == 0
    assert conversation.session.num_bytes == 0
    with pytest.raises(RequestError, match="closed"):
        conversation.session.add(media_files()["picture"])


def test_a_page_that_comes_back_in_time_loses_nothing(
    conversations: Conversations, clock: Clock
) -> None:
    conversation = conversations.of("a")
    conversations.arrive("a")
    conversations.leave("a")
    conversations.arrive("a")
    clock.now = 10_000
    conversations.free_stale()
    assert conversations.of("a") is conversation


def test_one_of_two_connections_keeps_a_conversation(
    conversations: Conversations, clock: Clock
) -> None:
    conversations.of("a")
    for change in (conversations.arrive, conversations.arrive, conversations.leave):
        change("a")
    clock.now = 10_000
    conversations.free_stale()
    assert len(conversations) == 1


def test_a_program_without_a_connection_is_given_up_when_idle(
    conversations: Conversations, clock: Clock
) -> None:
    conversations.of("script")
    clock.now = 599
    conversations.free_stale()
    conversations.of("script")
    clock.now = 1198
    conversations.free_stale()
    assert len(conversations) == 1
    clock.now = 1200
    conversations.free_stale()
    assert len(conversations) == 0


def test_a_freed_conversation_is_said_once_and_then_begins_anew(
    conversations: Conversations, clock: Clock
) -> None:
    before = conversations.of("a")
    clock.now = 601
    conversations.free_stale()
    with pytest.raises(RequestError, match="left alone for long"):
        conversations.of("a")
    assert conversations.of("a") is not before


def test_the_longest_idle_goes_when_there_are_too_many(conversations: Conversations) -> None:
    first = conversations.of("a")
    for visitor in ("b", "c"):
        conversations.of(visitor)
    assert conversations.of("a") is first
    conversations.of("d")
    assert len(conversations) == 3
    assert conversations.of("a") is first
    with pytest.raises(RequestError, match="left alone"):
        conversations.of("b")


def test_many_without_a_connection_do_not_drive_out_an_open_page(
    conversations: Conversations,
) -> None:
    conversations.arrive("page")
    first = conversations.of("page")
    for number in range(10):
        assert conversations.of(f"script{number}") is conversations.of(f"script{number}")
    assert conversations.of("page") is first
    assert len(conversations) == 3


def test_who_is_being_answered_does_not_go(conversations: Conversations) -> None:
    pieces = conversations.of("a").ask("Hello?", **SPOKEN)
    next(pieces)
    for visitor in ("b", "c", "d"):
        conversations.of(visitor)
    assert "".join(pieces)
    assert len(conversations) == 3


def test_leaving_stops_the_answer_and_keeps_what_was_said(conversations: Conversations) -> None:
    conversation = conversations.of("a")
    conversations.arrive("a")
    pieces = conversation.ask("Hello?", **SPOKEN)
    said = next(pieces)
    conversations.leave("a")
    said += "".join(pieces)
    (turn,) = conversation.session.history
    assert turn.answer == said.strip()
    assert conversation.exchanges[0].report.stopped
    assert conversation.exchanges[0].report.num_tokens < 40


def test_what_was_freed_is_forgotten_at_last(clock: Clock) -> None:
    conversations = Conversations(tiny_chat(), idle=10, clock=clock)
    for number in range(1005):
        conversations.of(f"v{number}")
        clock.now += 11
        conversations.free_stale()
    assert len(conversations) == 0
    assert conversations.of("v0")  # so long ago that nothing is known of it
    assert len(conversations._gone) <= 1000
    assert not conversations._used.keys() - {"v0"}


@pytest.fixture
def conversation() -> Conversation:
    return Conversation(tiny_chat())


def test_a_file_is_added_once(conversation: Conversation) -> None:
    picture = media_files()["picture"]
    assert conversation.add(picture, use_audio=True) is not None
    assert conversation.add(picture, use_audio=True) is None
    assert len(conversation.session.media) == 1


def test_every_turn_knows_its_media_and_its_report(conversation: Conversation) -> None:
    conversation.add(media_files()["picture"], use_audio=True)
    "".join(conversation.ask("What?", **SHORT))
    conversation.add(media_files()["wav"], use_audio=True)
    "".join(conversation.ask("And?", **SHORT))
    names = [[item.path.name for item in e.media] for e in conversation.exchanges]
    assert names == [["picture.png"], ["sound.wav"]]
    reports = [exchange.report for exchange in conversation.exchanges]
    assert reports[1].num_prompt_tokens > reports[0].num_prompt_tokens
    "".join(conversation.regenerate(**SHORT))
    assert conversation.exchanges[0].report is reports[0]
    assert conversation.exchanges[1].report is not reports[1]
    assert names == [[item.path.name for item in e.media] for e in conversation.exchanges]


def test_undo_gives_the_question_and_its_media_back(conversation: Conversation) -> None:
    conversation.add(media_files()["picture"], use_audio=True)
    "".join(conversation.ask("What?", **SHORT))
    assert conversation.undo() == "What?"
    assert conversation.exchanges == []
    assert [item.path.name for item in conversation.new_media] == ["picture.png"]


def test_switching_the_sound_keeps_the_media_with_their_turns(conversation: Conversation) -> None:
    conversation.add(media_files()["talkie"], use_audio=False)
    "".join(conversation.ask("What?", **SHORT))
    assert not conversation.session.media[0].sound_used
    conversation.set_audio(True)
    assert conversation.session.media[0].sound_used
    assert conversation.new_media == []


def test_an_answer_that_fails_leaves_the_reports_as_they_were(
    conversation: Conversation, monkeypatch: pytest.MonkeyPatch
) -> None:
    "".join(conversation.ask("What?", **SHORT))
    report = conversation.exchanges[0].report

    def failing(*args: object, **options: object) -> object:
        raise RequestError("no")
        yield ""

    monkeypatch.setattr("video_llama.chat.answer.Answerer.stream", failing)
    for pieces in (conversation.ask("And?", **SHORT), conversation.regenerate(**SHORT)):
        with pytest.raises(RequestError):
            next(pieces)
    assert [exchange.report for exchange in conversation.exchanges] == [report]


def in_a_thread(function: Callable[[], object]) -> threading.Thread:
    thread = threading.Thread(target=function)
    thread.start()
    return thread


def test_restart_ends_the_answer_and_forgets_everything(conversation: Conversation) -> None:
    picture = media_files()["picture"]
    conversation.add(picture, use_audio=True)
    pieces = conversation.ask("What?", **{**SPOKEN, "max_new_tokens": 1000, "min_new_tokens": 1000})
    next(pieces)
    answering = in_a_thread(lambda: "".join(pieces))
    conversation.restart()
    answering.join()
    assert conversation.session.history == conversation.exchanges == []
    assert conversation.session.media == []
    assert conversation.add(picture, use_audio=True) is not None


def test_files_are_deleted_when_no_conversation_needs_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / ("ab" * 32)
    folder.mkdir()
    upload = Path(shutil.copy(media_files()["picture"], folder))
    (tmp_path / "examples").mkdir()
    example = Path(shutil.copy(media_files()["picture"], tmp_path / "examples"))
    conversations = Conversations(
        tiny_chat(), discard=Uploads(tmp_path, ServerOptions()).discard, idle=0
    )
    for visitor in ("a", "b"):
        conversations.arrive(visitor)
        for path in (upload, example):
            conversations.of(visitor).add(path, use_audio=True)
    monkeypatch.setattr("video_llama.apps.page.uploads.SECONDS_TO_ADD", 0)
    conversations.of("a").restart()
    conversations.free_stale()
    assert upload.exists(), "another visitor uploaded the same file"
    conversations.of("b").restart()
    monkeypatch.setattr("video_llama.apps.page.uploads.SECONDS_TO_ADD", 100)
    conversations.free_stale()
    assert upload.exists(), "a third one may have, and not added it yet"
    monkeypatch.setattr("video_llama.apps.page.uploads.SECONDS_TO_ADD", 0)
    conversations.free_stale()
    assert not upload.exists()
    assert example.exists()
