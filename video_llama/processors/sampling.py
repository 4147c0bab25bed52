"""Which frames of a video are looked at. Indices are exact integers, counted from 0."""

from __future__ import annotations

import math

import torch


def frame_window(
    num_frames: int, fps: float, *, start: float = 0.0, end: float | None = None
) -> range:
    """The frames shown from `start` to `end`.

    Args:
        num_frames: frames of the video.
        fps: frames per second.
        start: seconds; the first frame of the window is not earlier.
        end: seconds; the frames of the window are earlier than this. None is the end of the video.

    Returns:
        Indices that follow one another; at least one frame when `start` lies in the video.

    Raises:
        ValueError: `start` lies behind the last frame.
    """
    # Times such as 0.3 s are rounded up before they get here; a frame must not fall out for that.
    slack = 1e-6
    first = math.ceil(min(start * fps, num_frames) - slack)
    if first >= num_frames:
        raise ValueError(f"the part from {start:g} s is empty, it lasts {num_frames / fps:.4g} s")
    last = num_frames if end is None else math.ceil(min(end * fps, num_frames) - slack)
    return range(first, max(first + 1, last))


def uniform(window: range, count: int) -> list[int]:
    """The first frame of each of `count` equal parts of the window: floor(i * length / count).

    Args:
        window: frames to choose from.
        count: frames wanted; a shorter window gives all of its frames.
    """
    count = min(count, len(window))
    return [window[i * len(window) // count] for i in range(count)]


def headtail(window: range, count: int, generator: torch.Generator) -> list[int]:
    """Random frames, half of them from each half of the window, in order and without repetition.

    When `count` is odd the second half gives one more, as it does when the window's length is.

    Args:
        window: frames to choose from.
        count: frames wanted; a shorter window gives all of its frames.
        generator: source of the random choice.
    """
    count = min(count, len(window))
    half = len(window) // 2
    head = torch.randperm(half, generator=generator)[: count // 2]
    tail = half + torch.randperm(len(window) - half, generator=generator)[: count - count // 2]
    return sorted(window[i] for i in torch.cat([head, tail]).tolist())


def at_rate(window: range, count: int, *, fps: float, rate: float) -> list[int]:
    """A frame every `1 / rate` seconds; spread over the window when that is more than `count`.

    Args:
        window: frames to choose from.
        count: most frames wanted.
        fps: frames per second of the video.
        rate: frames per second wanted; above `fps` every frame is taken once.
    """
    step = max(1.0, fps / rate)
    wanted = math.ceil(len(window) / step)
    if wanted > count:
        return uniform(window, count)
    return [window[int(i * step)] for i in range(wanted)]
