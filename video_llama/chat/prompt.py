"""The turns of a chat as one prompt that fits into the context of the language model."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from video_llama.chat.media import EncodedMedia, MediaItem
from video_llama.text.templates import Template, Turn
from video_llama.types import IMAGE_PLACEHOLDER, RequestError

_FILLED_AFTER_DROPPING = 0.75
"""Share of the room that is filled after turns were dropped.

Were it 1, every further question would drop a turn, and the whole context be computed anew."""


@dataclass(frozen=True)
class ChatTurn:
    """A question with the files that came with it, and its answer once there is one."""

    question: str
    items: tuple[MediaItem, ...] = ()
    answer: str | None = None

    @property
    def turn(self) -> Turn:
        """The same as the template takes it."""
        media = tuple(media for item in self.items for media in item.prompt_media)
        return Turn(self.question, media, self.answer)


@dataclass(frozen=True)
class Prompt:
    """A prompt, L positions long.

    Attributes:
        ids: L token ids, media as placeholders.
        marks: L marks; equal beginnings mean equal embeddings.
        text: for people.
        media: tokens of all media, in order, (1, N, D_llm) each.
        num_dropped: how many of the oldest turns are not in it.
    """

    ids: list[int]
    marks: list[int]
    text: str
    media: list[Tensor]
    num_dropped: int


@dataclass(frozen=True)
class PromptBuilder:
    """Makes prompts for a language model with `context` positions."""

    template: Template
    tokenizer: Any
    context: int

    def build(
        self, turns: Sequence[ChatTurn], max_new_tokens: int, *, num_dropped: int = 0
    ) -> Prompt:
        """Write turns as a prompt. Where there is no room the oldest turns go; their media stay.

        Args:
            turns: all turns, the last one without answer.
            num_dropped: turns that were left out before, which only come back if all fit.

        Raises:
            RequestError: the last question does not fit.
        """
        # Decided first, because everything else is made from the turns that are left.
        num_dropped = self._num_dropped(turns, max_new_tokens, min(num_dropped, len(turns) - 1))
        kept = _without_oldest(turns, num_dropped)
        written = [turn.turn for turn in kept]
        ids = self.template.chat_ids(written, self.tokenizer)
        media = [encoded for turn in kept for item in turn.items for encoded in item.encoded]
        return Prompt(
            ids=ids,
            marks=self._marks(ids, media),
            text=self.template.chat_text(written),
            media=[encoded.tokens for encoded in media],
            num_dropped=num_dropped,
        )

    def num_media_tokens(self, items: Sequence[MediaItem]) -> int:
        """Count the positions that files take with the sentences that introduce them."""
        return self._num_tokens([ChatTurn("", tuple(items))])

    def _num_dropped(self, turns: Sequence[ChatTurn], max_new_tokens: int, before: int) -> int:
        room = self.context - max_new_tokens
        # As few as possible, and otherwise the same as before: then the cache still fits.
        for count in sorted({0, before}):
            if self._num_tokens(_without_oldest(turns, count)) <= room:
                return count
        # The last question always stays, and with it all media.
        most = len(turns) - 1
        least = self._num_tokens(_without_oldest(turns, most))
        if least > room:
            raise RequestError(
                f"the question and its media take {least} tokens and the answer may take "
                f"{max_new_tokens}, but the model's context holds {self.context}; ask a shorter "
                "question or allow a shorter answer (max_new_tokens)"
            )
        # The more turns go, the fewer tokens are left: a search by halves.
        return bisect_left(
            range(most),
            -room * _FILLED_AFTER_DROPPING,
            key=lambda count: -self._num_tokens(_without_oldest(turns, count)),
        )

    def _num_tokens(self, turns: Sequence[ChatTurn]) -> int:
        return len(self.template.chat_ids([turn.turn for turn in turns], self.tokenizer))

    def _marks(self, ids: list[int], media: Sequence[EncodedMedia]) -> list[int]:
        """Mark text by its token ids, and each medium by a negative number of its own."""
        # Two pictures have the same placeholder ids. Their marks must differ, or one would be
        # answered from the keys and values of the other.
        placeholder = self.tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)
        numbers = iter([-1 - each.identity for each in media for _ in range(each.media.num_tokens)])
        return [next(numbers) if token == placeholder else token for token in ids]


def _without_oldest(turns: Sequence[ChatTurn], count: int) -> list[ChatTurn]:
    """Leave out the first turns; their media come with the first that is left."""
    # The files still belong to the conversation: a later question may be about them.
    first = turns[count]
    items = tuple(item for turn in turns[: count + 1] for item in turn.items)
    return [replace(first, items=items), *turns[count + 1 :]]
