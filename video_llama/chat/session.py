"""The files of one conversation.

One conversation of a chat: its media, its turns and what the model still knows of them.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_llama.chat.answer import AnswerReport, AnswerText, generation_settings, stream_answer
from video_llama.chat.media import Kind, MediaItem, MediaSource, Progress
from video_llama.chat.prompt import AskedTurn, Prompt
from video_llama.chat.sharing import SharedPace
from video_llama.models.generation.cache import PrefixCache
from video_llama.models.generation.generate import GenerationSettings
from video_llama.text.templates import Turn
from video_llama.types import RequestError

if TYPE_CHECKING:
    from video_llama.chat.engine import Chat


class Shelf:
    """The files of a session, each encoded once.

    Args:
        chat: encodes, and knows how much fits into a prompt.

    Attributes:
        items: in the order of their arrival.
    """

    def __init__(self, chat: Chat) -> None:
        self._chat = chat
        self.items: list[MediaItem] = []

    @property
    def num_bytes(self) -> int:
        """Memory of all items; what they share counts once."""
        tensors = {id(t): t.nbytes for item in self.items for t in item.tensors}
        return sum(tensors.values())

    def read(
        self, path: str | Path, source: MediaSource, *, use_audio: bool, progress: Progress | None
    ) -> MediaItem:
        """An item for a file, which is not put on the shelf yet.

        Args:
            path: as the user gave it.
            source: what is asked for; equal to that of an item here: nothing is encoded again.
            use_audio: whether the sound of a clip is heard.
            progress: told what is being done.

        Raises:
            MediaError: the file cannot be used.
        """
        encoder = self._chat.encoder
        known = next((item for item in self.items if item.source == source), None)
        if known is None:
            decoded = encoder.decode(path, source, use_audio=use_audio, progress=progress)
            encoder.finish([decoded], progress)
            return decoded.item
        item = replace(known, path=Path(path), timings={"decode": 0.0, "encode": 0.0})
        if item.kind == "video":
            encoder.switch_sound(item, use_audio, progress)
        return item

    def put(self, item: MediaItem) -> None:
        """Add an item.

        Raises:
            RequestError: all together they would not fit into a prompt.
        """
        self._check_room([*self.items, item])
        self.items.append(item)

    def switched(self, item: MediaItem, on: bool, progress: Progress | None) -> MediaItem:
        """A copy of a clip that is heard, or not.

        Raises:
            RequestError: it is no clip.
            MediaError: its sound cannot be read.
        """
        if item.kind != "video":
            raise RequestError(f"{item.path.name} is no clip: its sound cannot be switched")
        copy = replace(item, timings=dict(item.timings))
        self._chat.encoder.switch_sound(copy, on, progress)
        return copy

    def exchange(self, item: MediaItem, copy: MediaItem) -> None:
        """Let an item become like its copy, where it stands.

        Raises:
            RequestError: it is not here any more, or all together would not fit into a prompt.
        """
        self.check_mine(item)
        self._check_room([copy if other is item else other for other in self.items])
        vars(item).update(vars(copy))

    def remove(self, item: MediaItem) -> None:
        """Take an item away.

        Raises:
            RequestError: it is not here.
        """
        self.check_mine(item)
        self.items = [other for other in self.items if other is not item]

    def clear(self) -> None:
        """Take everything away."""
        self.items = []

    def check_mine(self, item: MediaItem) -> None:
        """Whether an item is here.

        Raises:
            RequestError: it is not.
        """
        if not any(other is item for other in self.items):
            raise RequestError(f"{item.path.name} is not in this session")

    def _check_room(self, items: Sequence[MediaItem]) -> None:
        """Whether all fit into the context, with a question beside them."""
        needed, context = self._chat.prompts.num_media_tokens(items), self._chat.context
        if needed >= context:
            raise RequestError(
                f"the files take {needed} tokens together, but the model's context holds "
                f"{context}; take one out, or start another session"
            )


class Session:
    """One conversation: its media, its turns, and the report of its last answer.

    Keys and values of the language model stay from turn to turn: only what is new in the prompt is
    computed, also after a change, from the first position on that differs.

    Attributes:
        report: of the last answer.
    """

    def __init__(self, chat: Chat) -> None:
        self.chat = chat
        self._shelf = Shelf(chat)
        self.report = AnswerReport()
        self._turns: list[AskedTurn] = []
        self._num_dropped = 0
        self._cache = PrefixCache()
        self._guard = threading.Lock()
        self._pace: SharedPace | None = None
        self._closed = False

    def __enter__(self) -> Session:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def media(self) -> list[MediaItem]:
        """Every file, in the order of its arrival."""
        return self._shelf.items

    @property
    def history(self) -> list[Turn]:
        """The turns so far."""
        return [asked.turn for asked in self._turns]

    @property
    def is_answering(self) -> bool:
        """Whether an answer is being written."""
        return self._pace is not None

    @property
    def num_bytes(self) -> int:
        """Memory of the media and of what the language model remembers."""
        return self._shelf.num_bytes + self._cache.num_bytes

    def add(
        self,
        path: str | Path,
        kind: Kind | None = None,
        *,
        use_audio: bool = True,
        num_frames: int | None = None,
        num_clips: int | None = None,
        progress: Progress | None = None,
    ) -> MediaItem:
        """Add a file; it becomes part of the next question. It is encoded once per session.

        Args:
            path: of a clip, picture or sound.
            kind: what to take it for; None: what it is.
            use_audio: whether the sound of a clip is heard, if it has any.
            num_frames: frames of a clip; None: as configured.
            num_clips: segments of a sound; None: as configured.
            progress: told what is being done.

        Raises:
            MediaError: the file cannot be used; the session is as it was.
            RequestError: the model cannot take it, or not also this one.
        """
        self._check_open()
        source = MediaSource.of(path, kind, num_frames, num_clips)
        item = self._shelf.read(path, source, use_audio=use_audio, progress=progress)
        with self._guard:
            self._check_open()
            self._shelf.put(item)
        return item

    def set_audio(self, item: MediaItem, on: bool, progress: Progress | None = None) -> None:
        """Switch the sound of a clip on or off, also in turns already asked.

        Args:
            item: of `media`.
            on: whether it is heard.
            progress: told what is being done.

        Raises:
            MediaError: its sound cannot be read.
            RequestError: it is no clip of this session, or an answer is being written.
        """
        with self._changing():
            self._shelf.check_mine(item)
        switched = self._shelf.switched(item, on, progress)
        with self._changing():
            self._shelf.exchange(item, switched)

    def remove(self, item: MediaItem) -> None:
        """Take a file out of the conversation, also out of turns already asked.

        Raises:
            RequestError: it is not of this session, or an answer is being written.
        """
        with self._changing():
            self._shelf.remove(item)
            self._turns = [
                replace(asked, items=tuple(i for i in asked.items if i is not item))
                for asked in self._turns
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
        settings = generation_settings(options)
        self._check_open()
        self._prompt([*self._turns, self._asked(question)], settings)
        return self._stream(question, settings)

    def regenerate(self, **options: Any) -> Iterator[str]:
        """Stream another answer to the last question; the old one stays until it has ended.

        Args:
            options: of `GenerationSettings`.

        Returns:
            As `ask`.

        Raises:
            RequestError: there is no answer yet, or an option that is unknown or out of range.
        """
        settings = generation_settings(options)
        self._check_open()
        self._check_turns()
        self._prompt([*self._turns[:-1], replace(self._turns[-1], answer=None)], settings)
        return self._stream(None, settings)

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
                self._shelf.clear()
                self._cache.clear()

    def stop(self) -> None:
        """End the answer that is being written, if any, after its current token."""
        pace = self._pace
        if pace is not None:
            pace.stop()

    def close(self) -> None:
        """Stop, and free everything; the session cannot be used afterwards."""
        with self._guard:
            self._closed = True
            if self._pace is not None:
                self._pace.stop()  # its stream frees the memory when it ends
            else:
                self._free()

    def _free(self) -> None:
        self._turns = []
        self._shelf.clear()
        self._cache.clear()

    def _asked(self, question: str) -> AskedTurn:
        """An open turn with the media that no question has come with yet."""
        asked = {id(item) for turn in self._turns for item in turn.items}
        return AskedTurn(question, tuple(item for item in self.media if id(item) not in asked))

    def _prompt(self, turns: list[AskedTurn], settings: GenerationSettings) -> Prompt:
        return self.chat.prompts.build(
            turns, settings.max_new_tokens, num_dropped=self._num_dropped
        )

    def _stream(self, question: str | None, settings: GenerationSettings) -> Iterator[str]:
        """Answer a question, or the last one again."""
        chat = self.chat
        pace = SharedPace(chat.lock)
        with self._changing():
            # What was added or answered since the call counts; what is added from now on waits.
            if question is None:
                self._check_turns()
                before, turn = self._turns[:-1], replace(self._turns[-1], answer=None)
            else:
                before, turn = self._turns, self._asked(question)
            prompt = self._prompt([*before, turn], settings)
            self._pace = pace
        used = [item for asked in (*before, turn) for item in asked.items]
        self.report = report = AnswerReport(
            notices=[
                *chat.notices,
                *dict.fromkeys(item.notice for item in used if item.notice),
                *_dropped_notice(prompt.num_dropped),
            ]
        )
        text = AnswerText(chat.template, chat.model.tokenizer)
        ended = False
        try:
            with chat.caches.lease(self._cache):
                yield from stream_answer(
                    chat.model, chat.template, prompt, self._cache, settings, pace, text, report
                )
            ended = True
        except (GeneratorExit, KeyboardInterrupt):  # what was said until now is the answer
            ended = report.stopped = True
            raise
        finally:
            with self._guard:
                self._pace = None
                if self._closed:
                    self._free()
                elif ended and (text.said or question is not None or not report.stopped):
                    self._turns = [*before, replace(turn, answer=text.said)]
                    self._num_dropped = prompt.num_dropped

    @contextmanager
    def _changing(self) -> Iterator[None]:
        """Holds the session for a change, which no answer may see half of."""
        with self._guard:
            self._check_open()
            if self._pace is not None:
                raise RequestError(
                    "the last answer of this session is still being written; stop it, or wait for "
                    "its end"
                )
            yield

    def _check_open(self) -> None:
        if self._closed:
            raise RequestError("the session is closed; start another one")

    def _check_turns(self) -> None:
        if not self._turns:
            raise RequestError("nothing has been asked yet")


def _dropped_notice(num_dropped: int) -> list[str]:
    if not num_dropped:
        return []
    turns = "turn is" if num_dropped == 1 else f"{num_dropped} turns are"
    return [f"the context is full: the oldest {turns} no longer seen, the media still are"]
