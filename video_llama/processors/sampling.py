"""Choose which frames of a video are looked at, from the times at which they are shown."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch


@dataclass(frozen=True, kw_only=True)
class Timeline:
    """When the frames of a video are shown.

    Attributes:
        seconds: the start of each frame, rising, from the start of the file's presentation.
        end: seconds at which the last frame ends.
        fps: average frames per second.
    """

    seconds: Sequence[float]
    end: float
    fps: float

    @property
    def duration(self) -> float:
        """Seconds from the start of the first frame to the end of the last one."""
        return self.end - self.seconds[0]


def timeline(
    times: Sequence[float], *, fps: float | None, tick: float, last: float, start: float
) -> Timeline:
    """Return when frames are shown; those on the grid of the header's rate exactly on it.

    Containers round times to their ticks (1 ms in Matroska), so a time that is off by no more than
    that counts as on the grid. The header's rate is kept unless the times speak against it.

    Args:
        times: of the frames, in seconds and rising; at least one.
        fps: frames per second that the header states; None if it states none.
        tick: seconds between two times that the container can hold.
        last: seconds that the last frame is shown; 0 if unknown.
        start: of the presentation, on the clock of `times`.
    """
    count, offset = len(times), max(0.0, times[0] - start)
    seconds = np.asarray(times, np.float64) - times[0]
    # Most containers say how long the last frame is shown. Else it is as long as most others.
    if last <= 0:
        last = float(np.median(np.diff(seconds))) if count > 1 else 1 / (fps or 1.0)
    duration = float(seconds[-1]) + last
    if fps:
        grid = np.arange(count) / fps
        is_steady = np.abs(seconds - grid) <= max(tick, 0.001) * 1.01
        seconds = np.maximum.accumulate(np.where(is_steady, grid, seconds))
        duration = count / fps if is_steady.all() else duration
        # Recordings of browsers state a thousand frames per second.
        fps = fps if 0.8 * duration < count / fps < 1.25 * duration else None
    return Timeline(
        seconds=(offset + seconds).tolist(), end=offset + duration, fps=fps or count / duration
    )


_SLACK = 1e-6
"""Seconds that a time may be rounded by, such as 0.3 s from a YAML, without losing its frame."""


def frame_window(timeline: Timeline, *, start: float = 0.0, end: float | None = None) -> range:
    """Return the frames whose showing begins from `start` to `end`.

    Args:
        start: seconds; the first frame of the window is not earlier.
        end: seconds; the frames of the window are earlier than this. None is the end of the video.

    Returns:
        Indices that follow one another; at least one frame when `start` lies in the video.

    Raises:
        ValueError: `start` lies behind the last frame.
    """
    count = len(timeline.seconds)
    first = bisect_left(timeline.seconds, start - _SLACK)
    if first >= count:
        # The last frame may be shown for long, as in a slide show.
        if start >= timeline.end - _SLACK:
            length = f"it lasts {timeline.end:.4g} s"
            raise ValueError(f"the part from {start:g} s is empty, {length}")
        first = count - 1
    # The end is exclusive: a frame that begins there belongs to what follows.
    last = count if end is None else bisect_left(timeline.seconds, end - _SLACK)
    return range(first, max(first + 1, last))


def uniform(window: range, count: int) -> list[int]:
    """Return the first frame of each of `count` equal parts: floor(i * length / count).

    Args:
        count: frames wanted; a shorter window gives all of its frames.
    """
    # Whole numbers, as rounding would give a frame too many or miss one now and then.
    count = min(count, len(window))
    return [window[i * len(window) // count] for i in range(count)]


def headtail(window: range, count: int, generator: torch.Generator) -> list[int]:
    """Return random frames, in order and without repetition, half of them from each half.

    When `count` is odd the second half gives one more, as it does when the window's length is.

    Args:
        count: frames wanted; a shorter window gives all of its frames.
    """
    count = min(count, len(window))
    half = len(window) // 2
    # The order of the two draws is part of what a seed means.
    head = torch.randperm(half, generator=generator)[: count // 2]
    tail = half + torch.randperm(len(window) - half, generator=generator)[: count - count // 2]
    return sorted(window[i] for i in torch.cat([head, tail]).tolist())


def at_rate(timeline: Timeline, window: range, count: int, *, rate: float) -> list[int]:
    """Return the frames shown every `1 / rate` seconds; no frame twice.

    Args:
        count: most frames wanted; more than that are spread over the window instead.
        rate: frames per second wanted.
    """
    edges = np.append(timeline.seconds[window.start : window.stop], timeline.end)
    if window.stop < len(timeline.seconds):
        edges[-1] = timeline.seconds[window.stop]
    # How many of the wanted moments lie before each frame; one that has some more behind it has
    # a moment within its time.
    moments = np.ceil((edges - edges[0] - _SLACK) * rate)
    chosen = [window[int(i)] for i in np.flatnonzero(np.diff(moments) > 0)]
    return chosen if len(chosen) <= count else uniform(window, count)
