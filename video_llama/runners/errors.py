"""Errors of a run. Torch-free."""

from __future__ import annotations

from video_llama.types import VideoLlamaError


class LocalError(VideoLlamaError):
    """An error that one of several processes has met, in its data, and the others know not of."""


class DivergedError(VideoLlamaError):
    """The loss was not finite for too long; names the items of the last update."""


class TooManyBadItemsError(VideoLlamaError):
    """More of a data set cannot be read than `run.max_bad_fraction` allows."""
