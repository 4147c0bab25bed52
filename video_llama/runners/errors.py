"""Errors of a run. Torch-free."""

from __future__ import annotations

from video_llama.types import VideoLlamaError


class LocalError(VideoLlamaError):
    """An error that one of several processes has met, in its data, and the others know not of."""


class DivergedError(VideoLlamaError):
    """The loss was not finite for too long; names the items of the last update."""


class TooManyBadItemsError(VideoLlamaError):
    """More of a data set cannot be read than `run.max_bad_fraction` allows."""


def plain_message(error: VideoLlamaError) -> str:
    """What an error says, without the traceback that a loading process puts into it."""
    kind = type(error)
    return str(error).rpartition(f"{kind.__module__}.{kind.__qualname__}: ")[2].strip()
