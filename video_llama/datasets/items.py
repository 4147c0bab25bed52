"""From an annotated item to tensors, and from items to a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

from video_llama.datasets.conversation import (
    Media,
    Piece,
    Question,
    Template,
    image_question,
    media_question,
)
from video_llama.datasets.media_loader import Kind, LoadedMedia, MediaLoader
from video_llama.datasets.records import Record, Records
from video_llama.types import (
    IGNORE_INDEX,
    BadItem,
    Batch,
    CachedFeatures,
    CaptionBatch,
    InstructionBatch,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


@dataclass(frozen=True, eq=False)
class Item:
    """One element of a batch.

    Attributes:
        item_id: which one.
        media: its picture, clip or sound.
        caption: of caption data, cleaned.
        input_ids: of a conversation.
        labels: of a conversation.
    """

    item_id: str
    media: LoadedMedia
    caption: str = ""
    input_ids: Sequence[int] = ()
    labels: Sequence[int] = ()

    @property
    def values(self) -> Tensor:
        """Those of its media."""
        return self.media.values


def _collated(items: list[Item], kind: Kind) -> dict[str, Any]:
    """What of a batch concerns its media: tensors, and what a cache has of them."""
    cached = [item.media.values for item in items if item.media.is_cached]
    decoded = [item.media.values for item in items if not item.media.is_cached]
    fields: dict[str, Any] = {
        "audio_values" if kind == "audio" else "pixel_values": _stacked(decoded)
    }
    if any(item.media.key for item in items):
        fields["cached"] = CachedFeatures(
            keys=[item.media.key for item in items],
            seconds=[item.media.seconds for item in items],
            is_there=[item.media.is_cached for item in items],
            values=_stacked(cached),
        )
    return fields


def _stacked(values: list[Tensor]) -> Tensor | None:
    # In a worker this stacks straight into the shared memory that the batch travels in.
    return default_collate(values) if values else None


class Items(Protocol):
    """The items of a data set.

    Attributes:
        name: registered name of the data set.
        records: the annotated items.
    """

    name: str
    records: Records

    def load(self, index: int, generator: torch.Generator) -> Item:
        """The item of that number.

        Raises:
            MediaError: its media cannot be read.
        """

    def collate(self, items: list[Item], bad_items: list[BadItem], prompt: str | None) -> Batch:
        """Items as a batch.

        Args:
            items: B of them.
            bad_items: those that others took the place of.
            prompt: of captions.
        """


class CaptionItems:
    """Media with captions.

    Args:
        name: registered name of the data set.
        records: the annotated items.
        loader: of their media.
        clean: of their captions; None leaves them as they are.
    """

    def __init__(
        self,
        name: str,
        records: Records,
        loader: MediaLoader,
        *,
        clean: Callable[[str], str] | None,
    ) -> None:
        self.name = name
        self.records = records
        self._loader = loader
        self._clean = clean

    def load(self, index: int, generator: torch.Generator) -> Item:
        """As in `Items`."""
        record = self.records[index]
        caption = self._clean(record.caption) if self._clean else record.caption
        return Item(record.item_id, self._loader.load(record, generator), caption=caption)

    def collate(self, items: list[Item], bad_items: list[BadItem], prompt: str | None) -> Batch:
        """As in `Items`."""
        return CaptionBatch(
            captions=[item.caption for item in items],
            prompt=prompt,
            item_ids=[item.item_id for item in items],
            data_set=self.name,
            bad_items=bad_items,
            **_collated(items, self._loader.kind),
        )


class InstructionItems:
    """Media with conversations about them.

    Args:
        name: registered name of the data set.
        records: the annotated items.
        loader: of their media.
        template: format of the conversations.
        tokenizer: made by `load_tokenizer`.
        num_media_tokens: positions of the media in a conversation.
        max_length: longest conversation, tokens.
    """

    def __init__(
        self,
        name: str,
        records: Records,
        loader: MediaLoader,
        *,
        template: Template,
        tokenizer: PreTrainedTokenizerFast,
        num_media_tokens: int,
        max_length: int,
    ) -> None:
        self.name = name
        self.records = records
        self._loader = loader
        self._template = template
        self._tokenizer = tokenizer
        self._num_media_tokens = num_media_tokens
        self._max_length = max_length

    def load(self, index: int, generator: torch.Generator) -> Item:
        """As in `Items`; a ConfigError where a conversation's first question is too long."""
        record = self.records[index]
        media = self._loader.load(record, generator)
        turns = self._turns(record, media.message)
        encoded = self._template.encode(turns, self._tokenizer, self._max_length)
        return Item(record.item_id, media, input_ids=encoded.input_ids, labels=encoded.labels)

    def _turns(self, record: Record, message: str) -> list[tuple[Question, str]]:
        kind, count = self._loader.kind, self._num_media_tokens
        if kind == "image":
            return [(image_question(question, count), answer) for question, answer in record.turns]
        # Pieces, not texts: what an annotation has in common with a placeholder stays text.
        (first, answer), *rest = record.turns
        led = media_question([Media(kind, count, message)], first)
        return [(led, answer), *(([Piece(question)], answer) for question, answer in rest)]

    def collate(self, items: list[Item], bad_items: list[BadItem], prompt: str | None) -> Batch:
        """As in `Items`; a prompt has no use here."""
        ids = [torch.tensor(item.input_ids) for item in items]
        labels = [torch.tensor(item.labels) for item in items]
        pad_id = self._tokenizer.pad_token_id
        input_ids = pad_sequence(ids, batch_first=True, padding_value=pad_id)
        lengths = torch.tensor([len(row) for row in ids])
        return InstructionBatch(
            input_ids=input_ids,
            attention_mask=torch.arange(input_ids.shape[1]) < lengths[:, None],
            labels=pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
            item_ids=[item.item_id for item in items],
            data_set=self.name,
            bad_items=bad_items,
            **_collated(items, self._loader.kind),
        )
