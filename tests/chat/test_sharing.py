"""Several people, one model: turns in order, answers that do not mix, and an end when told so."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from tests.tiny_chat import SPOKEN, answer, media_files, tiny_chat
from video_llama.chat.engine import Chat
from video_llama.chat.sharing import FairLock, TimedLock
from video_llama.types import RequestError


@pytest.fixture(scope="module")
def chat() -> Chat:
    return tiny_chat()


def wait_until_waiting(lock: FairLock, count: int) -> None:
    pause = threading.Event()
    while lock.num_waiting < count:
        pause.wait(0.001)


def test_the_lock_is_given_in_the_order_of_coming() -> None:
    lock, order = FairLock(), []

    def take(number: int) -> None:
        with lock.turn():
            order.append(number)

    lock.acquire()
    threads = []
    for number in range(5):
        threads.append(threading.Thread(target=take, args=(number,)))
        threads[-1].start()
        wait_until_waiting(lock, number + 1)
    lock.release()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 2, 3, 4]


def test_who_steps_aside_goes_last() -> None:
    lock, order = FairLock(), []

    def take(number: int) -> None:
        with lock.turn():
            order.append(number)

    lock.acquire()
    threads = [threading.Thread(target=take, args=(number,)) for number in range(2)]
    for count, thread in enumerate(threads, start=1):
        thread.start()
        wait_until_waiting(lock, count)
    lock.yield_turn()
    order.append(99)
    lock.release()
    for thread in threads:
        thread.join()
    assert order == [0, 1, 99]
    lock.yield_turn()  # with nobody waiting, and nobody holding it, nothing happens


@pytest.mark.parametrize("handed_over", [False, True])
def test_one_who_is_interrupted_while_waiting_holds_nobody_up(
    handed_over: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = FairLock()
    lock.acquire()

    def interrupt(event: threading.Event, timeout: float | None = None) -> bool:
        if handed_over:
            lock.release()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Event, "wait", interrupt)
        with pytest.raises(KeyboardInterrupt):
            lock.acquire()
    assert lock.num_waiting == 0
    if not handed_over:
        lock.release()
    with lock.turn():
        pass


def test_the_time_spent_waiting_is_noted() -> None:
    lock = FairLock()
    timed = TimedLock(lock)
    lock.acquire()
    release = threading.Timer(0.05, lock.release)
    release.start()
    with timed.turn():
        assert timed.waited >= 0.04
    with lock.turn():
        pass
    release.join()


def test_ten_sessions_at_once_answer_as_each_alone(chat: Chat) -> None:
    files = media_files()
    names = ["talkie", "silent", "portrait", "picture", "wav"] * 2

    def converse(index: int) -> list[str]:
        options: dict[str, Any] = {"temperature": 1.0, "seed": index, "max_new_tokens": 10}
        if index % 3 == 0:
            options = {"num_beams": 2, "temperature": 0.7 * (index % 2), "seed": index}
        session = chat.start()
        session.add(files[names[index]])
        said = [answer(session, f"Question {n} of {index}?", **options) for n in range(2)]
        session.close()
        return said

    alone = [converse(index) for index in range(10)]
    with ThreadPoolExecutor(10) as pool:
        assert list(pool.map(converse, range(10))) == alone


def test_sessions_advance_together(chat: Chat) -> None:
    order: list[int] = []
    start = threading.Barrier(3)

    def speak(index: int) -> None:
        session = chat.start()
        start.wait()
        for _ in session.ask("What?", **SPOKEN):
            order.append(index)

    with ThreadPoolExecutor(3) as pool:
        list(pool.map(speak, range(3)))
    first_half = order[: len(order) // 2]
    assert all(first_half.count(index) >= 3 for index in range(3))


@pytest.mark.parametrize("beams", [1, 3])
def test_another_thread_stops_an_answer(chat: Chat, beams: int) -> None:
    session = chat.start()
    endless: dict[str, Any] = {**SPOKEN, "max_new_tokens": 1500, "min_new_tokens": 1500}
    pieces: list[str] = []
    thread = threading.Thread(
        target=lambda: pieces.extend(session.ask("What?", **{**endless, "num_beams": beams}))
    )
    thread.start()
    while not session.is_answering or not session.report.num_prompt_tokens:
        assert thread.is_alive()
    session.stop()
    thread.join(60)
    assert not thread.is_alive()
    assert session.report.stopped
    assert not session.report.finished
    assert session.report.num_tokens < 1500
    assert session.history[0].answer == "".join(pieces)
    assert not session.is_answering
    session.stop()  # nothing to stop
    assert answer(session, "And now?")


def test_what_would_change_a_running_answer_is_refused(chat: Chat) -> None:
    session = chat.start(video=media_files()["talkie"])
    pieces = session.ask("What?", **SPOKEN)
    next(pieces)
    item = session.media[0]
    for change in (
        session.undo,
        session.restart,
        lambda: session.remove(item),
        lambda: session.set_audio(item, False),
        lambda: next(session.ask("And?")),
    ):
        with pytest.raises(RequestError, match="still being written"):
            change()
    pieces.close()
    assert len(session.history) == 1


def test_a_closed_session_ends_its_answer_and_is_gone(chat: Chat) -> None:
    with chat.start(video=media_files()["talkie"]) as session:
        pieces = session.ask("What?", **{**SPOKEN, "max_new_tokens": 500, "min_new_tokens": 500})
        next(pieces)
    assert len("".join(pieces)) < 100
    assert session.num_bytes == 0
    for use in (
        lambda: session.ask("What?"),
        lambda: session.add(media_files()["picture"]),
        session.undo,
        session.regenerate,
    ):
        with pytest.raises(RequestError, match="is closed"):
            use()
    session.close()


def test_nothing_keeps_a_session_that_is_not_used_any_more(chat: Chat) -> None:
    session = chat.start(image=media_files()["picture"])
    answer(session)
    tokens = weakref.ref(session.media[0].encoded[0].tokens)
    known = weakref.ref(session._cache)
    del session
    gc.collect()
    assert tokens() is None
    assert known() is None
    answer(chat.start())


def test_beams_leave_the_random_numbers_of_others_alone(chat: Chat) -> None:
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    session = chat.start()
    options: dict[str, Any] = {"num_beams": 2, "temperature": 1.0, "seed": 1}
    with ThreadPoolExecutor(2) as pool:
        running = pool.submit(answer, chat.start(), "What?", **options)
        said = answer(session, "What?", **options)
        assert running.result() == said
    assert torch.equal(torch.rand(4), expected)
