"""From the media file of an item to what the model gets of it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from video_llama.datasets.conversation import frames_message
from video_llama.datasets.feature_cache import FeatureCache
from video_llama.datasets.records import Record
from video_llama.processors.image import ImageProcessor
from video_llama.processors.settings import ImageTrainSettings, VideoTrainSettings
from video_llama.processors.sound import AudioProcessor
from video_llama.processors.video import VideoProcessor
from video_llama.types import MediaError

Kind = Literal["image", "video", "audio"]
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

    Args:
        processor: as in `MediaLoader`.
        with_message: likewise.
        cache: of the features.
    """

    def __init__(self, processor: Processor, *, with_message: bool, cache: FeatureCache) -> None:
        super().__init__(processor, with_message=with_message)
        self._cache = cache

    def load(self, record: Record, generator: torch.Generator) -> LoadedMedia:
        """As in `MediaLoader`; nothing is opened where the cache has the features."""
        media_id = record.media.identity()
        if media_id is None:  # it cannot be read: let that be said
            return super().load(record, generator)
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
    """(3, T, H, W) with T <= count to (3, count, H, W)."""
    present = frames.shape[1]
    if present == count:
        return frames
    return frames[:, [i * present // count for i in range(count)]]
