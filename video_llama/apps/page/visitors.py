"""The visitors of the page: a conversation for each, freed when its visitor has gone."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from video_llama.chat.answer import AnswerReport
from video_llama.chat.engine import Chat
from video_llama.chat.media import MediaItem
from video_llama.types import RequestError, VideoLlamaError

SECONDS_TO_STOP = 30.0
"""An answer that was stopped ends after the word that is being computed; a slow machine may need
this long for one."""

SECONDS_TO_HAND_OVER = 2.0
"""Longest wait for the connection of a page that is loaded anew to end."""


@dataclass
class Exchange:
    """What the page keeps of a turn, beside the engine's own record."""

    media: list[MediaItem] = field(default_factory=list)
    """Items that came with the question."""
    report: AnswerReport = field(default_factory=AnswerReport)
    from_text: bool = False
    """Whether there was no file at all to answer from."""


def _keep(files: set[Path]) -> set[Path]:
    """Leave the files of conversations that have ended where they are."""
    return set()


class Conversation:
    """One visitor's session, with a report for every turn.

    Args:
        chat: the engine.
        forget: called with the files that are not needed any more.
    """

    def __init__(self, chat: Chat, forget: Callable[[set[Path]], object] = _keep) -> None:
        self.session = chat.start()
        self._forget = forget
        self.exchanges: list[Exchange] = []
        self.num_restarts = 0
        self._files: set[Path] = set()
        self._lock = threading.Lock()

    def add(self, path: Path, *, use_audio: bool) -> MediaItem | None:
        """Add a file; None where the conversation has it already.

        Raises:
            VideoLlamaError: of the engine.
        """
        # A visitor's files are added in turn, so that their order is that of the clicks.
        with self._lock:
            if path in self._files:
                return None
            item = self.session.add(path, use_audio=use_audio)
            self._files.add(path)
            return item

    @property
    def new_media(self) -> list[MediaItem]:
        """Media that no question has come with yet."""
        old = {item.path for exchange in self.exchanges for item in exchange.media}
        return [item for item in self.session.media if item.path not in old]

    def set_audio(self, on: bool) -> None:
        """Switch the sound of the clips of this conversation.

        Raises:
            VideoLlamaError: of the engine.
        """
        for item in self.session.media:
            if item.kind == "video" and item.has_sound and item.sound_used != on:
                self.session.set_audio(item, on)

    def remove(self, name: str) -> MediaItem:
        """Take out the file at a path.

        Raises:
            RequestError: there is none, or an answer is being written.
        """
        with self._lock:
            found = [
                item for item in self.session.media if name in (str(item.path), item.path.name)
            ]
            if not found:
                raise RequestError(f"{Path(name).name[:80]}: no such file in this conversation")
            self.session.remove(found[0])
            for exchange in self.exchanges:
                exchange.media = [item for item in exchange.media if item is not found[0]]
            self._files.discard(found[0].path)
            self._forget({found[0].path})
        return found[0]

    def ask(self, question: str, **options: Any) -> Iterator[str]:
        """Stream an answer, as `Session.ask` does."""
        pieces = self.session.ask(question, **options)
        return self._recorded(pieces, len(self.exchanges), self.new_media)

    def regenerate(self, **options: Any) -> Iterator[str]:
        """Stream another answer to the last question, as `Session.regenerate` does."""
        pieces = self.session.regenerate(**options)
        return self._recorded(pieces, len(self.exchanges) - 1, self.exchanges[-1].media)

    def undo(self) -> str:
        """Take back the last turn; returns its question."""
        question = self.session.undo()
        self.exchanges.pop()
        return question

    def restart(self) -> None:
        """Forget turns and files; an answer that is being written ends first.

        Raises:
            RequestError: it does not end.
        """
        # Counted first: an answer that is being written sees that it is no longer current.
        self.num_restarts += 1
        self.session.stop()
        deadline = time.monotonic() + SECONDS_TO_STOP
        while self.session.is_answering and time.monotonic() < deadline:
            time.sleep(0.01)
        self.session.restart()
        self.exchanges.clear()
        self._drop_files()

    def close(self) -> None:
        """Free everything; an answer that is being written ends."""
        self.session.close()
        self._drop_files()

    @property
    def files(self) -> frozenset[Path]:
        """What has been added."""
        return frozenset(self._files)

    def _drop_files(self) -> None:
        files, self._files = self._files, set()
        self._forget(files)

    def _recorded(self, pieces: Iterator[str], index: int, media: list[MediaItem]) -> Iterator[str]:
        """Yield the pieces of an answer, and at their end keep the record of turn `index`."""
        failed = False
        try:
            yield from pieces
        except VideoLlamaError:
            failed = True
            raise
        finally:
            # Also after a stop, or where nobody reads on: what was said until then is the answer.
            if not failed and len(self.session.history) > index:
                from_text = not self.session.media
                self.exchanges[index:] = [Exchange(media, self.session.report, from_text)]


class Conversations:
    """The conversations of all visitors, by an id that only the visitor's page knows.

    A conversation is freed `grace` seconds after its page was closed. One that never had a
    connection (of a script without heartbeat) is freed when it has been idle. When there are too
    many, the longest idle one goes, those without a connection first.

    Args:
        chat: the engine that all share.
        most: conversations that are kept.
        discard: called with files that no conversation needs; returns those to ask about again.
        grace: seconds for which a page may lose its connection.
        idle: seconds after which a conversation without a connection is freed.
        clock: returns the time, in seconds.
    """

    def __init__(
        self,
        chat: Chat,
        *,
        most: int = 64,
        discard: Callable[[set[Path]], set[Path]] = _keep,
        grace: float = 60.0,
        idle: float = 1800.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.chat = chat
        self._most, self._grace, self._idle, self._clock = most, grace, idle, clock
        self._discard = discard
        self._unneeded: set[Path] = set()
        self._open: OrderedDict[str, Conversation] = OrderedDict()  # the longest idle first
        self._used: dict[str, float] = {}  # when each was last asked for
        self._connections: dict[str, int] = {}  # of each page; there may be several for a moment
        self._left: dict[str, float] = {}  # when the last connection of a page ended
        self._gone: OrderedDict[str, None] = OrderedDict()  # freed, and not informed yet
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._open)

    def of(self, visitor: str) -> Conversation:
        """Return the conversation of a visitor; a new one at the first call.

        Raises:
            RequestError: it has been freed since the last call; the next call begins a new one.
        """
        with self._lock:
            if visitor in self._gone:
                del self._gone[visitor]
                raise RequestError(
                    "this conversation was closed because it had been left alone for long, or "
                    "because too many others came; "
                    "add the files again to begin a new one"
                )
            if visitor not in self._open:
                self._open[visitor] = Conversation(self.chat, self._forget)
            self._open.move_to_end(visitor)
            self._used[visitor] = self._clock()
            conversation, crowded = self._open[visitor], self._too_many(visitor)
        # Outside of the lock: closing waits for an answer that is being written.
        for stale in crowded:
            stale.close()
        return conversation

    def hand_over(self, earlier: str, visitor: str) -> None:
        """Give a page the conversation that it had before it was loaded anew.

        Only what is left behind changes hands: a second window gets a conversation of its own.
        """
        # A browser opens the new page before the end of the old connection is noticed.
        deadline = time.monotonic() + SECONDS_TO_HAND_OVER
        while earlier in self._connections and time.monotonic() < deadline:
            time.sleep(0.05)
        with self._lock:
            if earlier in self._connections or visitor in self._open or earlier == visitor:
                return
            if conversation := self._open.pop(earlier, None):
                self._open[visitor] = conversation
                self._used[visitor] = self._used.pop(earlier)
                self._left.pop(earlier, None)

    def arrive(self, visitor: str) -> None:
        """Note that a page has connected."""
        with self._lock:
            self._connections[visitor] = self._connections.get(visitor, 0) + 1
            self._left.pop(visitor, None)

    def leave(self, visitor: str) -> None:
        """Note that a page has disconnected: its answer is stopped, the rest kept for a while."""
        with self._lock:
            self._connections[visitor] = self._connections.get(visitor, 1) - 1
            if self._connections[visitor] > 0:
                return
            del self._connections[visitor]
            self._left[visitor] = self._clock()
            conversation = self._open.get(visitor)
        if conversation is not None:
            conversation.session.stop()

    def free_stale(self) -> None:
        """Free what has been left, and what has been idle without a connection."""
        now = self._clock()
        with self._lock:
            # Pages that left without ever having had a conversation are forgotten, too.
            self._left = {
                visitor: since
                for visitor, since in self._left.items()
                if now - since < self._grace or visitor in self._open
            }
            stale = [
                self._remove(visitor)
                for visitor in list(self._open)
                if visitor not in self._connections
                and (
                    now - self._left.get(visitor, now) >= self._grace
                    or now - self._used[visitor] >= self._idle
                )
            ]
        for conversation in stale:
            conversation.close()
        self._discard_unneeded()

    def close(self) -> None:
        """Free everything."""
        with self._lock:
            stale = [self._remove(visitor) for visitor in list(self._open)]
        for conversation in stale:
            conversation.close()

    def _forget(self, files: set[Path]) -> None:
        with self._lock:
            self._unneeded |= files

    def _discard_unneeded(self) -> None:
        with self._lock:
            # Equal files have one path, whoever uploaded them: another visitor may need it.
            needed = {file for other in self._open.values() for file in other.files}
            files, self._unneeded = self._unneeded - needed, set()
        # Outside of the lock: it deletes files. What is too young to go comes back.
        self._forget(self._discard(files))

    def _too_many(self, newest: str) -> list[Conversation]:
        """Free the surplus: who keeps no connection goes first, then who is idle for longest."""
        # Whoever is being answered stays, even if there are too many for a moment.
        idle = [
            visitor
            for visitor, conversation in self._open.items()
            if visitor != newest and not conversation.session.is_answering
        ]
        idle.sort(key=lambda visitor: visitor in self._connections)
        surplus = max(0, len(self._open) - self._most)
        return [self._remove(visitor) for visitor in idle[:surplus]]

    def _remove(self, visitor: str) -> Conversation:
        self._used.pop(visitor, None)
        self._left.pop(visitor, None)
        # Remembered, so that the next call says what happened instead of an empty conversation.
        self._gone[visitor] = None
        while len(self._gone) > 1000:  # bounded: most never come back
            self._gone.popitem(last=False)
        return self._open.pop(visitor)
