"""Reactions to what visitors press: plain values in, a `View` of the page out.

Nothing here knows Gradio: `layout` calls the handlers and turns views into updates of components.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from video_llama.apps.page.uploads import Uploads
from video_llama.apps.page.view import (
    WRITING,
    Message,
    messages,
    note_html,
    open_turn,
    seen_html,
    waiting,
)
from video_llama.apps.page.visitors import Conversation, Conversations
from video_llama.chat.media import MediaItem
from video_llama.types import RequestError, VideoLlamaError

SECONDS_BETWEEN_UPDATES = 0.05
"""Shortest time between two updates of a growing answer in a browser."""


@dataclass(frozen=True, kw_only=True)
class View:
    """Changes of the page; None leaves a component as it is."""

    chat: list[Message] | None = None
    """Every bubble."""
    seen: str | None = None
    """HTML of what the model sees and hears."""
    note: str | None = None
    """HTML about what has just happened."""
    question: str | None = None
    """The text in the question box."""
    answering: bool | None = None
    """Whether an answer is being written: Stop stands in the place of Send."""


@dataclass(frozen=True)
class Chosen:
    """What a visitor hands in with a question."""

    files: Sequence[str]
    """Paths, as the visitor's page names them."""
    use_audio: bool = True
    """Whether the model hears the sound of clips."""


@dataclass(frozen=True)
class _OpenTurn:
    """A question that is being answered."""

    conversation: Conversation
    question: str
    before: list[Message]
    """Bubbles of the turns before it."""
    media: list[MediaItem]
    """What came with it."""
    num_restarts: int
    """Of the conversation when it was asked."""

    @property
    def is_current(self) -> bool:
        """Whether the page still shows the conversation in which it was asked."""
        return self.conversation.num_restarts == self.num_restarts

    def chat(self, answer: str) -> list[Message]:
        """Return every bubble, with what there is of the answer."""
        return [*self.before, *open_turn(self.question, self.media, answer)]


class Handlers:
    """The page's reactions: a view each, or several while an answer is written.

    Errors of the engine do not leave them: they are notes in a view.
    """

    def __init__(self, conversations: Conversations, uploads: Uploads) -> None:
        self._conversations = conversations
        self._uploads = uploads

    def ask(
        self, visitor: str, question: str, chosen: Chosen, options: dict[str, Any]
    ) -> Iterator[View]:
        """Add the files that came with a question, and answer it; files may come alone."""
        try:
            conversation = self._conversations.of(visitor)
            if not question.strip() and not chosen.files:
                raise RequestError("the question is empty: type something to ask")
            if conversation.session.is_answering:
                raise RequestError(
                    "an answer is being written: press Stop, or ask when it is complete"
                )
        except VideoLlamaError as error:
            yield self._refused(error, question)
            return
        before, restarts = messages(conversation), conversation.num_restarts
        try:
            items: list[MediaItem] = []
            for name in chosen.files:
                # Opening a file takes seconds: the question stands there, and what is being done.
                reading = f"Reading {Path(name).name} {WRITING}"
                bubbles = open_turn(question, conversation.new_media, reading)
                yield View(chat=before + bubbles, note="", question="", answering=True)
                items += self._add(conversation, name, use_audio=chosen.use_audio)
            if conversation.num_restarts != restarts:
                return
            if not question.strip():
                yield self._page(conversation, _welcome(items))
                return
            pieces = conversation.ask(question, **options)
        except VideoLlamaError as error:
            refused = self._refused(error)
            yield replace(self._page(conversation), note=refused.note, question=question)
            return
        turn = _OpenTurn(conversation, question, before, conversation.new_media, restarts)
        # The question is visible before the model has begun to answer.
        first = View(chat=turn.chat(""), seen=seen_html(conversation.session.media), note="")
        yield replace(first, question="", answering=True)
        yield from self._stream(turn, pieces)

    def regenerate(self, visitor: str, options: dict[str, Any]) -> Iterator[View]:
        """Answer the last question again."""
        try:
            conversation = self._conversations.of(visitor)
            question = _last_question(conversation)
            pieces = conversation.regenerate(**options)
        except VideoLlamaError as error:
            yield self._refused(error)
            return
        turn = _OpenTurn(
            # The last two bubbles are the turn that is answered anew.
            *(conversation, question, messages(conversation)[:-2]),
            conversation.exchanges[-1].media,
            conversation.num_restarts,
        )
        yield View(chat=turn.chat(""), note="", answering=True)
        yield from self._stream(turn, pieces)

    def stop(self, visitor: str) -> None:
        """End the answer that is being written, if there is one."""
        try:
            self._conversations.of(visitor).session.stop()
        except RequestError:  # the conversation has gone, and its answer with it
            return

    def undo(self, visitor: str) -> View:
        """Take back the last turn; its question returns to the box."""
        try:
            conversation = self._conversations.of(visitor)
            _last_question(conversation)
            question = conversation.undo()
        except VideoLlamaError as error:
            return self._refused(error)
        page = self._page(conversation, "The last question was taken back.")
        return replace(page, question=question)

    def restart(self, visitor: str) -> View:
        """Forget the conversation and its files."""
        try:
            conversation = self._conversations.of(visitor)
            conversation.restart()
        # The first call after it was freed raises; the second one begins anew.
        except RequestError:
            conversation = self._conversations.of(visitor)
        page = self._page(conversation, "The conversation and its files are forgotten.")
        return replace(page, question="")

    def resume(self, visitor: str, earlier: str) -> View:
        """Show a page that was loaded anew the conversation that it had before."""
        self._conversations.hand_over(earlier, visitor)
        try:
            return self._page(self._conversations.of(visitor))
        except VideoLlamaError as error:
            return self._refused(error)

    def remove(self, visitor: str, name: str) -> View:
        """Take one file out of the conversation; its turns stay."""
        try:
            conversation = self._conversations.of(visitor)
            item = conversation.remove(name)
        except VideoLlamaError as error:
            return self._refused(error)
        return self._page(conversation, f"{item.path.name} was taken out.")

    def set_audio(self, visitor: str, on: bool) -> View:
        """Switch the sound of the clips that were added."""
        try:
            conversation = self._conversations.of(visitor)
            conversation.set_audio(on)
        except VideoLlamaError as error:
            return self._refused(error)
        return View(seen=seen_html(conversation.session.media))

    def _add(self, conversation: Conversation, name: str, *, use_audio: bool) -> list[MediaItem]:
        """Add a file, unless the conversation has it already."""
        item = conversation.add(self._uploads.checked(name), use_audio=use_audio)
        return [item] if item else []

    def _stream(self, turn: _OpenTurn, pieces: Iterator[str]) -> Iterator[View]:
        """Show a growing answer, and the page when it is complete."""
        conversation, answer, updated = turn.conversation, "", 0.0
        try:
            # A restart empties the page at once: the rest of the old answer must not come back.
            for piece in pieces if turn.is_current else ():
                answer += piece
                if not turn.is_current:
                    return
                if time.monotonic() - updated >= SECONDS_BETWEEN_UPDATES:
                    updated = time.monotonic()
                    yield View(chat=turn.chat(answer), answering=True)
        except VideoLlamaError as error:
            refused = self._refused(error, turn.question)
            yield replace(self._page(conversation), note=refused.note, question=turn.question)
            return
        finally:
            pieces.close()  # type: ignore[attr-defined] # a closed page ends the answer
        if turn.is_current:
            stopped = conversation.session.report.stopped
            yield self._page(conversation, "The answer was stopped." if stopped else "")

    def _page(self, conversation: Conversation, note: str = "") -> View:
        """Return everything that the page shows now."""
        session = conversation.session
        return View(
            chat=messages(conversation) + waiting(conversation.new_media),
            seen=seen_html(session.media),
            note=note_html(note),
            answering=False,
        )

    def _refused(self, error: VideoLlamaError, question: str | None = None) -> View:
        # With the question, so that nothing that was typed is lost.
        return View(note=note_html(self._uploads.message(error), "error"), question=question)


def _last_question(conversation: Conversation) -> str:
    history = conversation.session.history
    if not history:
        raise RequestError("there is no question yet: ask one first")
    return history[-1].question


def _welcome(items: Sequence[MediaItem]) -> str:
    if not items:
        return "These files are part of the conversation already. Ask a question."
    names = ", ".join(item.path.name for item in items)
    notices = "".join(f" {item.notice}." for item in items if item.notice)
    return f"{names} can be asked about now.{notices}"
