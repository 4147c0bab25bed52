"""Hostile texts and damaged files: each gives an answer, or an error that says what is wrong."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.hostile import FRAGMENTS, hostile_text, malformed_file
from tests.media import tone, write_audio, write_picture, write_video
from tests.tiny_chat import VICUNA, answer, tiny_chat
from video_llama.chat.engine import Chat
from video_llama.chat.session import Session
from video_llama.types import ConfigError, MediaError, RequestError

slow = [pytest.mark.slow, pytest.mark.timeout(3600)]
TEMPLATES: list[tuple[str, ...]] = [(), VICUNA]
PLAIN_MARKS = {"vicuna": ("###",), "llama_v2": ("[INST]", "[/INST]", "<<SYS>>", "<</SYS>>")}


def marks_of(chat: Chat, session: Session) -> Counter[str]:
    """How often each mark of the template stands in the last prompt."""
    prompt = session.report.prompt
    return Counter({mark: prompt.count(mark) for mark in PLAIN_MARKS[chat.answerer.template.name]})


def special_ids(chat: Chat, session: Session) -> list[int]:
    """The special tokens of the last prompt, -1 for each position of a medium."""
    special = {*chat.model.tokenizer.all_special_ids}
    return [max(mark, -1) for mark in session._cache.marks if mark in special or mark < 0]


def check_text(chat: Chat, session: Session, harmless: Session, text: str) -> bool:
    """Ask the same of two sessions, one text apart: all else in their prompts must be alike."""
    options: dict[str, Any] = {"max_new_tokens": 1}
    refusal = ""
    try:
        answer(session, text, **options)
    except RequestError as error:
        refusal = str(error)
    if refusal:
        assert not text.strip() or "the model's context holds" in refusal
        return False
    answer(harmless, "What is it?", **options)
    assert marks_of(chat, session) == marks_of(chat, harmless), repr(text)
    assert special_ids(chat, session) == special_ids(chat, harmless), repr(text)
    return True


@pytest.mark.parametrize("count", [100, pytest.param(10_000, marks=slow)])
def test_hostile_texts_are_answered_as_text(tmp_path: Path, count: int) -> None:
    picture = write_picture(tmp_path / "picture.png")
    chats = [tiny_chat(*overrides) for overrides in TEMPLATES]
    pairs = [(chat, chat.start(image=picture), chat.start(image=picture)) for chat in chats]
    answered = 0
    for seed in range(count):
        chat, session, harmless = pairs[seed % 2]
        answered += check_text(chat, session, harmless, hostile_text(seed))
        # Hostile texts are also part of what was said before, as long as no turn is dropped.
        if len(session.history) >= 4 or session.report.num_prompt_tokens > 800:
            for each in (session, harmless):
                each.restart(keep_media=True)
    assert answered > 0.9 * count


@pytest.mark.parametrize("fragment", FRAGMENTS, ids=range(len(FRAGMENTS)))
def test_every_fragment_alone_and_at_a_border(fragment: str) -> None:
    chat = tiny_chat(*TEMPLATES[len(fragment) % 2])
    for text in (fragment, f"{fragment}?", f"#{fragment}#", f"[{fragment}]"):
        check_text(chat, chat.start(), chat.start(), text)


@pytest.mark.parametrize("count", [40, pytest.param(200, marks=slow)])
def test_damaged_files_are_read_or_refused(tmp_path: Path, count: int) -> None:
    originals = [
        write_video(tmp_path / "talkie.mp4", num_frames=24, sound=tone(3.0)),
        write_picture(tmp_path / "picture.jpg"),
        write_audio(tmp_path / "sound.wav", tone(1.0)),
        write_picture(tmp_path / "picture.png"),
    ]
    chat, outcomes = tiny_chat(), Counter[str]()
    session = chat.start()
    for seed in range(count):
        path = malformed_file(seed, originals, tmp_path)
        outcome = "read"
        try:
            item = session.add(path, num_frames=2, num_clips=1)
            assert item.num_tokens > 0
        except (MediaError, ConfigError) as error:
            outcome = type(error).__name__
        outcomes[outcome] += 1
        assert len(session.media) == (outcome == "read")
        assert isinstance(answer(session, max_new_tokens=1), str)
        session.restart()
    assert outcomes["MediaError"] > 0.2 * count
    assert outcomes["read"] > 0.05 * count
