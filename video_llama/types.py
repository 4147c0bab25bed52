"""Define the plain values that travel between the rooms: errors, batches, outputs.

Nothing of the package is imported here, and torch only for the type checker.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

if TYPE_CHECKING:
    import torch
    from torch import Tensor

MediaKind = Literal["image", "video", "audio"]
"""What a media file is to the model: a picture, a clip or a sound."""

IMAGE_PLACEHOLDER = "<ImageHere>"
"""Text mark that the encoders' output replaces; one special token of the tokenizer."""

IGNORE_INDEX = -100
"""Label of a position that carries no loss (the default of torch's cross entropy)."""


class VideoLlamaError(Exception):
    """Base of every error that the user of the package can mend."""


class ConfigError(VideoLlamaError):
    """A configuration that cannot be used: names file, key, what was given and what is valid."""


class WeightsError(VideoLlamaError):
    """A weight file that does not fit: names file, key, both shapes and the likely cause."""


class RequestError(VideoLlamaError):
    """A question or a setting of an answer that cannot be used; says what to change."""


class LocalError(VideoLlamaError):
    """An error of one of several processes, in its own data; the others do not know of it."""


class DivergedError(VideoLlamaError):
    """The loss was not finite for too long; names the items of the last update."""


class TooManyBadItemsError(VideoLlamaError):
    """More of a data set cannot be read than `run.max_bad_fraction` allows."""


class MediaError(VideoLlamaError):
    """A media file that cannot be used. The only error that a data set may skip.

    `path` is the file as it was given, `reason` says in a few words what is wrong with it.
    """

    def __init__(self, path: str | Path, reason: str) -> None:
        self.path = Path(path)
        self.reason = reason
        super().__init__(f"{path}: {reason}")

    def __reduce__(self) -> tuple[type[MediaError], tuple[str, str]]:
        # Exceptions with two arguments do not survive pickling by default; data workers send them.
        return type(self), (str(self.path), self.reason)


@dataclass(frozen=True, kw_only=True)
class BadItem:
    """An item of a data set that was replaced, because the media file at `path` cannot be read."""

    data_set: str
    item_id: str
    path: str
    reason: str


@dataclass(kw_only=True)
class CachedFeatures:
    """What a cache has of a batch whose frozen encoders may not have to run.

    Attributes:
        keys: of B items; empty for one that is not to be kept.
        seconds: the times of each clip's frames.
        is_there: whether the cache has the item. The batch holds the media of those it has not.
        values: (N, T, Q, D) float16 of the N items that it has; None if there are none.
    """

    keys: list[str]
    seconds: list[Sequence[float]]
    is_there: list[bool]
    values: Tensor | None


@dataclass(kw_only=True)
class _MediaBatch:
    """B items with their media.

    Exactly one of `pixel_values`, `audio_values` and `features` is given, unless some of the
    features still have to be computed (`cached`).

    Attributes:
        pixel_values: (B, 3, T, H, W) clips or (B, 3, H, W) pictures, normalised, also for the audio
            branch.
        audio_values: (B, S, 1, mel, frames) spectrogram clips, for the audio branch on real sound.
        features: (B, T, Q, D) of the frozen encoders, for the branch that trains.
        cached: what a cache has of them.
        item_ids: where each item came from, for messages.
        bad_items: the items that others took the place of.
    """

    pixel_values: Tensor | None = None
    audio_values: Tensor | None = None
    features: Tensor | None = None
    cached: CachedFeatures | None = None
    item_ids: list[str] = field(default_factory=list)
    data_set: str = ""
    bad_items: list[BadItem] = field(default_factory=list)

    def to(self: BatchT, device: torch.device | str) -> BatchT:
        """Copy the batch with its media to `device`.

        The text stays where it is: the model looks at its values, which on a GPU would have to be
        waited for.
        """
        return _with_tensors(
            self, lambda tensor: tensor.to(device, non_blocking=True), without=TEXT_TENSORS
        )

    def pin_memory(self: BatchT) -> BatchT:
        """Copy the batch to memory from which a GPU copies while it computes."""
        return _with_tensors(self, lambda tensor: tensor.pin_memory())


BatchT = TypeVar("BatchT", bound=_MediaBatch)
TEXT_TENSORS = frozenset({"input_ids", "attention_mask", "labels"})
"""Fields of a batch that stay on the host."""


def _with_tensors(
    batch: BatchT, change: Callable[[Tensor], Tensor], *, without: frozenset[str] = frozenset()
) -> BatchT:
    tensors: dict[str, Any] = {
        name: change(value)
        for name, value in vars(batch).items()
        if name not in without and hasattr(value, "pin_memory")
    }
    return replace(batch, **tensors)


@dataclass(kw_only=True)
class CaptionBatch(_MediaBatch):
    """Media with one caption each (stage 1, and the caption data of stage 2).

    Attributes:
        captions: B texts, without prompt and without end symbol.
        prompt: text with exactly one `<ImageHere>`, shared by the batch; None puts the media
            directly after BOS.
    """

    captions: list[str]
    prompt: str | None = None


@dataclass(kw_only=True)
class InstructionBatch(_MediaBatch):
    """Media with tokenised conversations (stage 2).

    Attributes:
        input_ids: (B, L) int64, right-padded; the id of `<ImageHere>` marks the media positions.
        attention_mask: (B, L) bool, False where padded.
        labels: (B, L) int64, IGNORE_INDEX where there is no loss.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor


Batch = CaptionBatch | InstructionBatch


@dataclass(kw_only=True)
class ModelOutput:
    """What a training step returns: the scalar mean cross entropy over its labelled tokens."""

    loss: Tensor
    num_tokens: int


def plain_message(error: VideoLlamaError) -> str:
    """Return what an error says, without the traceback that a loading process puts into it."""
    kind = type(error)
    return str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].strip()
