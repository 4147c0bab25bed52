"""From an annotated item to tensors, and from items to a batch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import default_collate

from video_llama.datasets.features import FeatureCache
from video_llama.datasets.records import Record, Records
from video_llama.processors.audio import AudioProcessor
from video_llama.processors.image import ImageProcessor
from video_llama.processors.settings import ImageTrainSettings, VideoTrainSettings
from video_llama.processors.video import VideoProcessor
from video_llama.text.questions import (
    Media,
    Piece,
    QuestionText,
    frames_message,
    image_question,
    media_question,
)
from video_llama.text.templates import Template
from video_llama.types import (
    IGNORE_INDEX,
    BadItem,
    Batch,
    CachedFeatures,
    CaptionBatch,
    InstructionBatch,
    MediaError,
)

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

Processor = VideoProcessor | ImageProcessor | AudioProcessor


@dataclass(frozen=True, eq=False)
class LoadedMedia:
    """What the model gets of a media file.

    Attributes:
        values: (3, H, W) of a picture, (3, T, H, W) of a clip, (S, 1, mel, frames) of a sound; or
            (T, Q, D) features of a cache.
        message: what is said about it in a conversation.
        seconds: the times of a clip's frames.
        key: what a cache files its features under; empty without a cache.
        is_cached: whether `values` are such features.
    """

    values: Tensor
    message: str = ""
    seconds: Sequence[float] = ()
    key: str = ""
    is_cached: bool = False


class MediaLoader:
    """Decodes and transforms the media of a data set.

    Args:
        processor: for pictures, clips or sounds.
        with_message: whether conversations say which frames of a clip there are.
    """

    def __init__(self, processor: Processor, *, with_message: bool) -> None:
        self.processor = processor
        self._with_message = with_message

    @property
    def kind(self) -> Literal["image", "video", "audio"]:
        """Return what it loads."""
        if isinstance(self.processor, AudioProcessor):
            return "audio"
        return "image" if isinstance(self.processor, ImageProcessor) else "video"

    def load(self, record: Record, generator: torch.Generator) -> LoadedMedia:
        """Load the media of an item; a clip with fewer frames than `n_frms` has some of them twice.

        A batch is one tensor, so its clips need equally many frames. (The original refused such a
        clip, and every one if `n_frms` was odd.) Frame i of n is frame floor(i * T / n) of the T
        there are; the message names those T.

        Args:
            generator: source of random frames and crops.

        Raises:
            MediaError: the media cannot be read; names the file of the annotation.
        """
        with record.media.open() as path:
            # Media of a tar are read under the name of a file in memory: errors name the annotated.
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
        frames = _filled(clip.pixel_values, self.processor.settings.n_frms)
        return LoadedMedia(frames, self._message(clip.seconds), clip.seconds)

    def _message(self, seconds: Sequence[float]) -> str:
        return frames_message(seconds) if self._with_message and seconds else ""


class CachedMediaLoader(MediaLoader):
    """Gives the features of media where a cache has them, and decodes the others.

    Features are filed under the file they are of (its path, size and time of change: looking these
    up costs next to nothing, where a hash would read every file in every epoch; a file that was
    moved is encoded again), the transform with its choice of frames, and, where those are random,
    the numbers that they draw.
    """

    def __init__(self, processor: Processor, *, with_message: bool, cache: FeatureCache) -> None:
        super().__init__(processor, with_message=with_message)
        self._cache = cache

    def load(self, record: Record, generator: torch.Generator) -> LoadedMedia:
        """See `MediaLoader`; nothing is opened where the cache has the features."""
        media_id = record.media.identity()
        if media_id is None:  # it cannot be read: let that be said
            return super().load(record, generator)
        # The seed stands for the random numbers that will be drawn. Where none are, it must not
        # count, or each epoch would encode the same pixels again.
        drawn = generator.initial_seed() if self._is_random else None
        parts = repr((media_id, self._transform, drawn)).encode()
        key = hashlib.blake2b(parts, digest_size=16).hexdigest()
        found = self._cache.find(key)
        if found is None:
            return replace(super().load(record, generator), key=key)
        message = self._message(found.seconds)
        return LoadedMedia(found.values, message, found.seconds, key, is_cached=True)

    @cached_property
    def _is_random(self) -> bool:
        crops = isinstance(self.processor.settings, ImageTrainSettings | VideoTrainSettings)
        return crops or getattr(self.processor, "sampling", None) == "headtail"

    @cached_property
    def _transform(self) -> list[tuple[str, object]]:
        settings = asdict(self.processor.settings)
        if isinstance(self.processor, VideoProcessor):
            settings["sampling"] = self.processor.sampling  # what `auto` stands for
        return sorted(settings.items())


def _filled(frames: Tensor, count: int) -> Tensor:
    """Repeat frames at equal distances: (3, T, H, W) with T <= count to (3, count, H, W)."""
    present = frames.shape[1]
    if present == count:
        return frames
    return frames[:, [i * present // count for i in range(count)]]


@dataclass(frozen=True, eq=False)
class Item:
    """One element of a batch: media with a cleaned caption, or with a tokenised conversation."""

    item_id: str
    media: LoadedMedia
    caption: str = ""
    input_ids: Sequence[int] = ()
    labels: Sequence[int] = ()

    @property
    def values(self) -> Tensor:
        """Return the tensor of its media."""
        return self.media.values


@dataclass(frozen=True, eq=False)
class Items:
    """The items of a data set: its registered name, its annotation, and who loads the media."""

    name: str
    records: Records
    loader: MediaLoader

    def load(self, index: int, generator: torch.Generator) -> Item:
        """Load the item of that number.

        Raises:
            MediaError: its media cannot be read.
        """
        raise NotImplementedError

    def collate(self, items: list[Item], bad_items: list[BadItem], prompt: str | None) -> Batch:
        """Make a batch of items.

        Args:
            bad_items: those that others took the place of.
            prompt: of captions; conversations have no use for it.
        """
        raise NotImplementedError

    def _fields(self, items: list[Item], bad_items: list[BadItem]) -> dict[str, Any]:
        """Return what batches of captions and of conversations have in common."""
        # Features and pixels have different shapes: two tensors, and a list that says who is where.
        cached = [item.media.values for item in items if item.media.is_cached]
        decoded = [item.media.values for item in items if not item.media.is_cached]
        media = "audio_values" if self.loader.kind == "audio" else "pixel_values"
        fields: dict[str, Any] = {
            "item_ids": [item.item_id for item in items],
            "data_set": self.name,
            "bad_items": bad_items,
            media: _stacked(decoded),
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


@dataclass(frozen=True, eq=False, kw_only=True)
class CaptionItems(Items):
    """Media with captions, which a text processor cleans unless it is None."""

    clean: Callable[[str], str] | None

    def load(self, index: int, generator: torch.Generator) -> Item:
        """See `Items`."""
        record = self.records[index]
        caption = self.clean(record.caption) if self.clean else record.caption
        return Item(record.item_id, self.loader.load(record, generator), caption=caption)

    def collate(self, items: list[Item], bad_items: list[BadItem], prompt: str | None) -> Batch:
        """See `Items`."""
        captions = [item.caption for item in items]
        return CaptionBatch(captions=captions, prompt=prompt, **self._fields(items, bad_items))


@dataclass(frozen=True, eq=False, kw_only=True)
class InstructionItems(Items):
    """Media with conversations about them, of at most `max_length` tokens.

    `num_media_tokens` of these are the positions of the media.
    """

    template: Template
    tokenizer: PreTrainedTokenizerFast
    num_media_tokens: int
    max_length: int

    def load(self, index: int, generator: torch.Generator) -> Item:
        """See `Items`; a ConfigError where a conversation's first question is too long."""
        record = self.records[index]
        media = self.loader.load(record, generator)
        turns = self._turns(record, media.message)
        encoded = self.template.encode(turns, self.tokenizer, self.max_length)
        return Item(record.item_id, media, input_ids=encoded.input_ids, labels=encoded.labels)

    def _turns(self, record: Record, message: str) -> list[tuple[QuestionText, str]]:
        kind, count = self.loader.kind, self.num_media_tokens
        if kind == "image":
            return [(image_question(question, count), answer) for question, answer in record.turns]
        # Pieces, not texts: what an annotation has in common with a placeholder stays text.
        (first, answer), *rest = record.turns
        led = media_question([Media(kind, count, message)], first)
        return [(led, answer), *(([Piece(question)], answer) for question, answer in rest)]

    def collate(self, items: list[Item], bad_items: list[BadItem], prompt: str | None) -> Batch:
        """See `Items`."""
        # Padded to the longest of the batch, not to max_length: buckets keep these close.
        ids = [torch.tensor(item.input_ids) for item in items]
        labels = [torch.tensor(item.labels) for item in items]
        pad_id = self.tokenizer.pad_token_id
        input_ids = pad_sequence(ids, batch_first=True, padding_value=pad_id)
        lengths = torch.tensor([len(row) for row in ids])
        return InstructionBatch(
            input_ids=input_ids,
            # By lengths, not by comparing with the id of padding, which texts may hold too.
            attention_mask=torch.arange(input_ids.shape[1]) < lengths[:, None],
            labels=pad_sequence(labels, batch_first=True, padding_value=IGNORE_INDEX),
            **self._fields(items, bad_items),
        )
