"""What a session keeps from turn to turn: the same answers as without it, for less work."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import nn

from tests.tiny_chat import SPOKEN, VICUNA, answer, media_files, tiny_chat
from video_llama.chat.engine import Chat
from video_llama.chat.session import Session
from video_llama.models.generation import generate as engine
from video_llama.models.generation.cache import PrefixCache
from video_llama.models.generation.generate import AnswerText
from video_llama.text.templates import Turn

GREEDY = {"temperature": 0.0, "max_new_tokens": 12, "min_new_tokens": 6}


@pytest.fixture(scope="module", params=[(), VICUNA], ids=["llama_v2", "vicuna"])
def chat(request: pytest.FixtureRequest) -> Chat:
    return tiny_chat(*request.param)


@pytest.fixture
def computed(chat: Chat) -> Iterator[list[int]]:
    """Positions of every step of the language model from now on."""
    steps: list[int] = []

    def note(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        given = next(kwargs[key] for key in ("inputs_embeds", "input_ids") if key in kwargs)
        steps.append(given.shape[1])

    handle = chat.model.language_model.register_forward_pre_hook(note, with_kwargs=True)
    yield steps
    handle.remove()


def tokens_of(session: Session) -> list[list[int]]:
    """The token ids of ten turns, with everything that a user may change on the way."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        return talk(session, monkeypatch)


def talk(session: Session, monkeypatch: pytest.MonkeyPatch) -> list[list[int]]:
    spoken: list[list[int]] = []
    original = AnswerText.push

    def push(text: AnswerText, token: int) -> str:
        spoken[-1].append(token)
        return original(text, token)

    def say(pieces: Iterator[str]) -> None:
        spoken.append([])
        "".join(pieces)

    monkeypatch.setattr(AnswerText, "push", push)
    files = media_files()
    clip = session.add(files["talkie"])
    say(session.ask("What happens here?", **GREEDY))
    say(session.ask("And then?", **GREEDY))
    session.add(files["picture"])
    say(session.ask("Is this the same thing?", **GREEDY))
    say(session.regenerate(**{**GREEDY, "repetition_penalty": 1.5}))
    assert session.undo() == "Is this the same thing?"
    say(session.ask("Is it another thing?", **GREEDY))
    session.set_audio(clip, False)
    say(session.ask("Now without sound?", **GREEDY))
    sound = session.add(files["wav"])
    say(session.ask("What do you hear?", **GREEDY))
    say(session.ask("With beams?", **{**GREEDY, "num_beams": 3}))
    session.remove(sound)
    say(session.ask("Still there?", **GREEDY))
    session.set_audio(clip, True)
    say(session.ask("The end?", **GREEDY))
    return spoken


def test_ten_turns_with_changes_have_the_same_tokens_without_cache(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tokens_of(chat.start())
    with monkeypatch.context() as forgetful:
        forgetful.setattr(PrefixCache, "num_common", lambda *_: 0)
        anew = tokens_of(chat.start())
    assert kept == anew
    assert len(kept) == 10
    assert all(len(ids) >= 6 for ids in kept)


def test_a_new_turn_computes_its_own_tokens_only(chat: Chat, computed: list[int]) -> None:
    session = chat.start(video=media_files()["talkie"])
    answer(session, "What happens here?")
    first = session.report
    assert computed[0] == first.num_prompt_tokens
    computed.clear()
    answer(session, "And then?")
    report = session.report
    assert computed[0] == report.num_prompt_tokens - report.num_reused_tokens
    # All of the first prompt is known; what the model said is known where it is written alike.
    assert report.num_reused_tokens >= first.num_prompt_tokens
    assert computed[1:] == [1] * (report.num_tokens - 1)


def test_an_answer_that_is_written_as_it_was_said_is_known(
    chat: Chat, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = chat.model.tokenizer
    session = chat.start()
    question = "What is it?"
    ids = chat.answerer.template.chat_ids([*session.history, Turn(question)], tokenizer)
    long = chat.answerer.template.encode([(question, "it is a red ball")], tokenizer).input_ids
    wanted = iter(long[len(ids) :])
    monkeypatch.setattr(engine._Sampler, "choose", lambda *_: torch.tensor([next(wanted)]))
    assert answer(session, question, max_new_tokens=5).startswith("it is")
    said = session.report.num_tokens
    computed.clear()
    wanted = iter(long[len(ids) :])
    answer(session, "And?", max_new_tokens=5)
    # The last token that was said has never been read by the model.
    assert session.report.num_reused_tokens >= len(ids) + said - 2


def test_another_answer_computes_one_position(chat: Chat, computed: list[int]) -> None:
    session = chat.start(image=media_files()["picture"])
    first = answer(session)
    computed.clear()
    assert "".join(session.regenerate(temperature=0.0, max_new_tokens=8)) == first
    assert computed[0] == 1
    assert session.report.num_reused_tokens == session.report.num_prompt_tokens - 1


def test_a_change_of_media_is_computed_from_there_on(chat: Chat) -> None:
    files = media_files()
    session = chat.start(video=files["talkie"])
    answer(session, "What happens?")
    session.set_audio(session.media[0], False)
    said = answer(session, "And now?")
    silent = chat.start(video=files["talkie"], use_audio=False)
    silent._turns = [
        type(turn)(turn.question, (silent.media[0],) if turn.items else (), turn.answer)
        for turn in session._turns[:-1]
    ]
    assert answer(silent, "And now?") == said
    assert session.report.prompt == silent.report.prompt
    assert session.report.num_reused_tokens < 60


def test_two_media_of_one_length_are_not_mistaken_for_one_another(chat: Chat) -> None:
    files = media_files()
    session = chat.start(image=files["picture"])
    answer(session)
    session.remove(session.media[0])
    session.restart(keep_media=True)
    session.add(files["silent"], num_frames=1)
    alone = chat.start()
    alone.add(files["silent"], num_frames=1)
    assert answer(session) == answer(alone)


def test_a_step_that_fails_half_way_leaves_nothing_wrong_behind(chat: Chat) -> None:
    session = chat.start(image=media_files()["picture"])
    answer(session)
    before = session.history

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    handle = chat.model.language_model.model.layers[2].register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        answer(session, "And now?")
    with pytest.raises(RuntimeError, match="out of memory"):
        "".join(session.regenerate(temperature=0.0))
    handle.remove()
    assert session.history == before
    fresh = chat.start(image=media_files()["picture"])
    answer(fresh)
    assert answer(session, "And now?") == answer(fresh, "And now?")


def test_a_long_prompt_is_computed_in_chunks(
    chat: Chat, computed: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = answer(chat.start(), "word " * 150)
    computed.clear()
    monkeypatch.setattr(engine, "PREFILL_CHUNK", 64)
    assert answer(chat.start(), "word " * 150) == whole
    assert max(computed) == 64


def test_a_full_context_is_not_computed_anew_at_each_turn(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat.model.language_model.config, "max_position_embeddings", 400)
    session = chat.start()
    shares, dropped = [], 0
    for number in range(24):
        answer(session, f"Question number {number}?")
        report = session.report
        shares.append(report.num_reused_tokens / report.num_prompt_tokens)
        assert report.num_prompt_tokens + 8 <= 400
        dropped = session._num_dropped
    assert dropped > 5
    assert sum(share > 0.5 for share in shares[1:]) > 16
    while len(session.history) > 2:
        session.undo()
    answer(session, "And now?")
    assert not any("context is full" in note for note in session.report.notices)


def test_idle_sessions_keep_no_more_than_allowed(chat: Chat) -> None:
    small = Chat(chat.model, cache_mb=0)
    session, other = small.start(), small.start()
    expected = [answer(s, q) for s in (chat.start(),) for q in ("What?", "And?")]
    assert [answer(session, q) for q in ("What?", "And?")] == expected
    assert session._cache.num_bytes == 0
    first = session.ask("Why?", **SPOKEN)
    next(first)
    answer(other)
    assert session._cache.num_bytes > 0  # in use, so nobody takes it away
    first.close()
    assert session._cache.num_bytes == other._cache.num_bytes == 0


def test_the_least_recently_used_is_forgotten_first(chat: Chat) -> None:
    sessions = [chat.start() for _ in range(3)]
    size = 0
    for session in sessions:
        answer(session)
        size = session._cache.num_bytes
    pool = Chat(chat.model, cache_mb=2.5 * size / 1e6)
    sessions = [pool.start() for _ in range(3)]
    for index in (0, 1, 0, 2):
        answer(sessions[index])
    assert [session._cache.num_bytes > 0 for session in sessions] == [True, False, True]


def test_a_closed_session_frees_its_memory(chat: Chat) -> None:
    session = chat.start(video=media_files()["talkie"])
    answer(session)
    assert session.num_bytes > 100_000
    session.close()
    assert session.num_bytes == 0
    assert session.media == session.history == []


def test_the_cache_of_a_long_talk_stays_within_the_context(
    chat: Chat, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(chat.model.language_model.config, "max_position_embeddings", 256)
    session = chat.start()
    config = chat.model.language_model.config
    position = 2 * config.num_hidden_layers * config.hidden_size * 4
    for number in range(12):
        answer(session, f"Question number {number}?")
        assert session._cache.num_bytes <= (256 * 1.25 + 128) * position
        assert len(session._cache.marks) <= 256
    assert torch.is_inference_mode_enabled() is False
