"""Batches that are on the GPU before they are needed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import fields

import torch
from torch import Tensor

from video_llama.types import Batch


def on_device(batches: Iterable[Batch], device: torch.device) -> Iterator[Batch]:
    """Batches on a device; to a GPU, each is copied while the one before is computed on.

    Args:
        batches: on the host, pinned for a GPU.
        device: where to.
    """
    if device.type != "cuda":
        yield from (batch.to(device) for batch in batches)
        return
    side = torch.cuda.Stream(device)
    waiting: tuple[Batch, torch.cuda.Event] | None = None
    for batch in batches:
        with torch.cuda.stream(side):
            copied = batch.to(device)
            event = side.record_event()
        if waiting is not None:
            yield _taken_over(*waiting)
        waiting = copied, event
    if waiting is not None:
        yield _taken_over(*waiting)


def _taken_over(batch: Batch, event: torch.cuda.Event) -> Batch:
    """A batch that the current stream may use, and whose memory is not reused before it has."""
    current = torch.cuda.current_stream()
    current.wait_event(event)
    for name in (field.name for field in fields(batch)):
        value = getattr(batch, name)
        if isinstance(value, Tensor):
            value.record_stream(current)
    return batch
