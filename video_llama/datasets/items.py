"""From an annotated item to tensors, and from items to a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

from video_llama.datasets.conversation import (
    Media,
    Piece,
    Question,
    Template,
    frames_message,
    image_question,
    media_question,
)
from video_llama.datasets.records import Record, Records
from video_llama.processors.image import ImageProcessor
from video_llama.processors.sound import AudioProcessor
from video_llama.processors.video import VideoProcessor
from video_llama.types import (
    IGNORE_INDEX,
    BadItem,
    Batch,
    CaptionBatch,
    InstructionBatch,
    MediaError,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Kind = Literal["image", "video", "audio"]


@dataclass(frozen=True, eq=False)
class LoadedMedia:
    """What the model gets of a media file.

    Attributes:
        values: (3, H, W) of a picture, (3, T, H, W) of a clip, (S, 1, mel, frames) of a sound.
        message: what is said about it in a conversation.
    """

    values: Tensor
    message: str = ""


class MediaLoader:
    """Decodes and transforms the media of a data set.

    Args:
        processor: for pictures, clips or sounds.
        with_message: whether conversations say which frames of a clip there are.
    """

    def __init__(
        self, processor: VideoProcessor | ImageProcessor | AudioProcessor, *, with_message: bool
    ) -> None:
        self.processor = processor
        self._with_message = with_message

    @property
    def kind(self) -> Kind:
        """What it loads."""
        if isinstance(self.processor, AudioProcessor):
            return "audio"
        return "image" if isinstance(self.processor, ImageProcessor) else "video"

    def load(self, record: Record, generator: torch.Generator) -> LoadedMedia:
        """The media of an item; a clip with fewer frames than `n_frms` has some of them twice.

        A batch is one tensor, so its clips need equally many frames. (The original refused such a
        clip, and every one if `n_frms` was odd.) Frame i of n is frame floor(i * T / n) of the T
        there are; the message names those T.

        Args:
            record: the item.
            generator: source of random frames and crops.

        Raises:
            MediaError: the media cannot be read; names the file of the annotation.
        """
        with record.media.open() as path:
            try:
                return self._read(path, generator)
            except MediaError as error:
                raise MediaError(record.path, error.reason) from error

    def _read(self, path: Path, generator: torch.Generator) -> LoadedMedia:
        if isinstance(self.processor, AudioProcessor):
            return LoadedMedia(self.processor(path).values)
        if isinstance(self.processor, ImageProcessor):
            return LoadedMedia(self.processor(path, generator=generator))
        clip = self.processor(path, generator=generator)
        message = frames_message(clip.seconds) if self._with_message else ""
        return LoadedMedia(_filled(clip.pixel_values, self.processor.settings.n_frms), message)


def _filled(frames: Tensor, count: int) -> Tensor:
    """(3, T, H, W) with T <= count to (3, count, H, W)."""
    present = frames.shape[1]
    if present == count:
        return frames
    return frames[:, [i * present // count for i in range(count)]]


@dataclass(frozen=True, eq=False)
class Item:
    """One element of a batch.

    Attributes:
        item_id: which one.
        values: of its media, as in `LoadedMedia`.
        caption: of caption data, cleaned.
        input_ids: of a conversation.
        labels: of a conversation.
    """

    item_id: str
    values: Tensor
    caption: str = ""
    input_ids: Sequence[int] = ()
    labels: Sequence[int] = ()


def _stacked(items: list[Item]) -> Tensor:
    # In a worker this stacks straight into the shared memory that the batch travels in.
    values: Tensor = default_collate([item.values for item in items])
    return values


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
        return Item(record.item_id, self._loader.load(record, generator).values, caption=caption)

    def collate(self, items: list[Item], bad_items: list[BadItem], prompt: str | None) -> Batch:
        """As in `Items`."""
        values = _stacked(items)
        hears = self._loader.kind == "audio"
        return CaptionBatch(
            captions=[item.caption for item in items],
            pixel_values=None if hears else values,
            audio_values=values if hears else None,
            prompt=prompt,
            item_ids=[item.item_id for item in items],
            data_set=self.name,
            bad_items=bad_items,
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
        return Item(
            record.item_id, media.values, input_ids=encoded.input_ids, labels=encoded.labels
        )

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
        values = _stacked(items)
        ids = [torch.tensor(item.input_ids) for item in items]
        labels = [torch.tensor(item.labels) for item in items]
        pad_id = self._tokenizer.pad_token_id
        input_ids = pad_sequence(ids, batch_first=True, padding_value=pad_id)
        lengths = torch.tensor([len(row) for row in ids])
        hears = self._loader.kind == "audio"
        return InstructionBatch(
            input_ids=input_ids,
            attention_mask=torch.arange(input_ids.shape[1]) < lengths[:, None],
            labels=pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
            pixel_values=None if hears else values,
            audio_values=values if hears else None,
            item_ids=[item.item_id for item in items],
            data_set=self.name,
            bad_items=bad_items,
        )
