"""One conversation of a chat: its files, its turns, and what the model still knows of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from video_llama.chat.answer import Answerer, AnswerReport
from video_llama.chat.media import MediaEncoder, MediaItem, MediaKey, Progress
from video_llama.chat.prompt import ChatTurn, Prompt
from video_llama.models.generation.cache import PrefixCache
from video_llama.models.generation.generate import Row
from video_llama.models.generation.settings import GenerationSettings, generation_settings
from video_llama.text.templates import Turn
from video_llama.types import MediaKind, RequestError


class Session:
    """One conversation: its media, its turns, and the report of its last answer.

    Keys and values of the language model stay from turn to turn: only what is new in the prompt is
    computed, also after a change, from the first position on that differs.

    Args:
        answerer: answers, in turn with other sessions.

    Attributes:
        media: every file, in the order of its arrival.
        report: of the last answer.
    """

    def __init__(
        self, answerer: Answerer, encoder: MediaEncoder, notices: Sequence[str] = ()
    ) -> None:
        self.media: list[MediaItem] = []
        self.report = AnswerReport()
        self._answerer = answerer
        self._encoder = encoder
        self._notices = notices
        self._turns: list[ChatTurn] = []
        self._num_dropped = 0
        self._cache = PrefixCache()
        # Guards the turns and the media, never held while the model computes.
        self._guard = threading.Lock()
        self._row: Row | None = None
        self._closed = False

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def history(self) -> list[Turn]:
        """The turns so far."""
        return [turn.turn for turn in self._turns]

    @property
    def is_answering(self) -> bool:
        """Whether an answer is being written."""
        return self._row is not None

    @property
    def num_bytes(self) -> int:
        """Memory of the media and of what the language model remembers."""
        # What two items share counts once.
        tensors = {id(tensor): tensor.nbytes for item in self.media for tensor in item.tensors}
        return sum(tensors.values()) + self._cache.num_bytes

    def add(
        self,
        path: str | Path,
        kind: MediaKind | None = None,
        *,
        use_audio: bool = True,
        num_frames: int | None = None,
        num_clips: int | None = None,
        progress: Progress | None = None,
    ) -> MediaItem:
        """Add a file; it becomes part of the next question. It is encoded once per session.

        Args:
            kind: what to take it for; None: what it is.
            use_audio: whether the sound of a clip is heard, if it has any.
            num_frames: frames of a clip; None: as configured.
            num_clips: segments of a sound; None: as configured.
            progress: called with what is being done.

        Raises:
            MediaError: the file cannot be used; the session is as it was.
            RequestError: the model cannot take it, or not also this one.
        """
        self._check_open()
        key = MediaKey.of(path, kind, num_frames, num_clips)
        # Not under the guard: decoding takes long, and an answer may be running.
        item = self._read(path, key, use_audio, progress)
        with self._guard:
            self._check_open()
            self._check_room([*self.media, item])
            self.media.append(item)
        return item

    def set_audio(self, item: MediaItem, on: bool, progress: Progress | None = None) -> None:
        """Switch the sound of a clip on or off, also in turns already asked.

        Args:
            item: of `media`.
            progress: called with what is being done.

        Raises:
            MediaError: its sound cannot be read.
            RequestError: it is no clip of this session, or an answer is being written.
        """
        with self._changing():
            self._check_mine(item)
        if item.kind != "video":
            raise RequestError(f"{item.path.name} is no clip: its sound cannot be switched")
        # On a copy: if reading fails, or an answer begins, the item is as it was.
        copy = replace(item, timings=dict(item.timings))
        self._encoder.switch_sound(copy, on, progress)
        with self._changing():
            # Again, because it may have been taken out while its sound was read.
            self._check_mine(item)
            self._check_room([copy if other is item else other for other in self.media])
            vars(item).update(vars(copy))

    def remove(self, item: MediaItem) -> None:
        """Take a file out of the conversation, also out of turns already asked.

        Raises:
            RequestError: it is not of this session, or an answer is being written.
        """
        with self._changing():
            self._check_mine(item)
            self.media = [other for other in self.media if other is not item]
            self._turns = [
                replace(turn, items=tuple(i for i in turn.items if i is not item))
                for turn in self._turns
            ]

    def ask(self, question: str, **options: Any) -> Iterator[str]:
        """Stream the answer to a question.

        The turn joins the history when the answer ends, also where the caller stops early, with
        what was said until then.

        Args:
            question: any text; nothing in it is parsed.
            options: of `GenerationSettings`.

        Returns:
            An iterator of pieces of text; the stop mark never shows.

        Raises:
            RequestError: an empty or too long question, or an option that is unknown or out of
                range.
        """
        if not question.strip():
            raise RequestError("the question is empty")
        return self._answer(question, generation_settings(options))

    def regenerate(self, **options: Any) -> Iterator[str]:
        """Stream another answer to the last question; the old one stays until it has ended.

        Args:
            options: of `GenerationSettings`.

        Returns:
            As `ask`.

        Raises:
            RequestError: there is no answer yet, or an option that is unknown or out of range.
        """
        return self._answer(None, generation_settings(options))

    def undo(self) -> str:
        """Take back the last turn; its media wait for the next question.

        Returns:
            Its question.

        Raises:
            RequestError: there is none, or an answer is being written.
        """
        with self._changing():
            self._check_turns()
            return self._turns.pop().question

    def restart(self, *, keep_media: bool = False) -> None:
        """Forget the turns, and the media unless told otherwise.

        Raises:
            RequestError: an answer is being written.
        """
        with self._changing():
            self._turns, self._num_dropped = [], 0
            if not keep_media:
                self._free()

    def stop(self) -> None:
        """End the answer that is being written, if any, after its current token."""
        if (row := self._row) is not None:
            row.stop()

    def close(self) -> None:
        """Stop, and free everything; the session cannot be used afterwards."""
        with self._guard:
            # The thread that writes an answer still uses the memory: it frees it when it ends.
            self._closed = True
            if self._row is not None:
                self._row.stop()
            else:
                self._free()

    def _read(
        self, path: str | Path, key: MediaKey, use_audio: bool, progress: Progress | None
    ) -> MediaItem:
        """Make an item of a file. It does not belong to the session yet."""
        # Encoding a clip takes seconds, and is not repeated where it is added again.
        known = next((item for item in self.media if item.key == key), None)
        if known is None:
            decoded = self._encoder.decode(path, key, use_audio=use_audio, progress=progress)
            self._encoder.finish([decoded], progress)
            return decoded.item
        item = replace(known, path=Path(path), timings={"decode": 0.0, "encode": 0.0})
        if item.kind == "video":
            self._encoder.switch_sound(item, use_audio, progress)
        return item

    def _free(self) -> None:
        self._turns = []
        self.media = []
        self._cache.clear()

    def _answer(self, question: str | None, settings: GenerationSettings) -> Iterator[str]:
        """Answer a question, or with None the last one again."""
        self._check_open()
        # Made only to find out now whether it fits. It is made again when the answer begins.
        self._open_turn(question, settings)
        return self._stream(question, settings)

    def _open_turn(
        self, question: str | None, settings: GenerationSettings
    ) -> tuple[list[ChatTurn], Prompt]:
        """Return the turns, of which the last is to be answered, and their prompt."""
        if question is None:
            self._check_turns()
            turns = [*self._turns[:-1], replace(self._turns[-1], answer=None)]
        else:
            # With the media that no question has come with yet. By identity: the same file may
            # have been added twice.
            used = {id(item) for turn in self._turns for item in turn.items}
            items = tuple(item for item in self.media if id(item) not in used)
            turns = [*self._turns, ChatTurn(question, items)]
        return turns, self._answerer.prompts.build(
            turns, settings.max_new_tokens, num_dropped=self._num_dropped
        )

    def _stream(self, question: str | None, settings: GenerationSettings) -> Iterator[str]:
        with self._changing():
            # What was added or answered since the call counts; what is added from now on waits.
            turns, prompt = self._open_turn(question, settings)
            # From here on `stop` has something to stop, and changes are refused.
            self._row = row = self._answerer.row(prompt, settings, self._cache)
        self.report = report = AnswerReport(notices=self._answer_notices(turns, prompt))
        assert row.text is not None
        ended = False
        try:
            yield from self._answerer.stream(prompt, row, report)
            ended = True
        except (GeneratorExit, KeyboardInterrupt):  # what was said until now is the answer
            ended = report.stopped = True
            raise
        finally:
            with self._guard:
                self._row = None
                if self._closed:
                    self._free()
                # An error leaves the history as it was, and so does a stop before the first word
                # of another answer to the last question.
                elif ended and (row.text.text or question is not None or not report.stopped):
                    self._turns = [*turns[:-1], replace(turns[-1], answer=row.text.text)]
                    self._num_dropped = prompt.num_dropped

    def _answer_notices(self, turns: list[ChatTurn], prompt: Prompt) -> list[str]:
        """List what the user should know of an answer, each once."""
        found = [*self._notices, *(item.notice for turn in turns for item in turn.items)]
        if prompt.num_dropped:
            count = prompt.num_dropped
            oldest = "turn is" if count == 1 else f"{count} turns are"
            found.append(
                f"the context is full: the oldest {oldest} no longer seen, the media still are"
            )
        return list(dict.fromkeys(notice for notice in found if notice))

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Hold the session for a change, of which no answer may see half."""
        with self._guard:
            self._check_open()
            if self._row is not None:
                raise RequestError(
                    "the last answer of this session is still being written; stop it, or wait for "
                    "its end"
                )
            yield

    def _check_open(self) -> None:
        if self._closed:
            raise RequestError("the session is closed; start another one")

    def _check_mine(self, item: MediaItem) -> None:
        if not any(other is item for other in self.media):
            raise RequestError(f"{item.path.name} is not in this session")

    def _check_room(self, items: Sequence[MediaItem]) -> None:
        """Refuse more than fits into the context with a question beside it."""
        needed = self._answerer.prompts.num_media_tokens(items)
        if needed >= self._answerer.context:
            raise RequestError(
                f"the files take {needed} tokens together, but the model's context holds "
                f"{self._answerer.context}; take one out, or start another session"
            )

    def _check_turns(self) -> None:
        if not self._turns:
            raise RequestError("nothing has been asked yet")
