"""Turn, mirror and resize decoded frames to what the model takes."""

from __future__ import annotations

import struct
from typing import cast

import numpy as np
from av.buffer import Buffer
from av.filter import Graph
from av.video.frame import VideoFrame

Orientation = tuple[int, int, int, int]
"""Signs (a, b, c, d) of a display matrix.

The matrix takes the pixel at (x, y) to (a x + c y, b x + d y); y points down.
"""

_UPRIGHT = (1, 0, 0, 1)

_FILTERS: dict[Orientation, list[tuple[str, str]]] = {
    _UPRIGHT: [],
    (-1, 0, 0, 1): [("hflip", "")],
    (1, 0, 0, -1): [("vflip", "")],
    (-1, 0, 0, -1): [("hflip", ""), ("vflip", "")],
    (0, 1, -1, 0): [("transpose", "clock")],
    (0, -1, 1, 0): [("transpose", "cclock")],
    (0, 1, 1, 0): [("transpose", "cclock_flip")],
    (0, -1, -1, 0): [("transpose", "clock_flip")],
}
"""FFmpeg's filters that show a frame as its display matrix asks for."""


class FrameScaler:
    """Turns and resizes decoded frames as decord does, to the bit.

    Args:
        height: of the result, in pixels.
        width: likewise.
    """

    def __init__(self, *, height: int, width: int) -> None:
        self._size = (height, width)
        self._graph: tuple[object, Graph] | None = None

    def __call__(self, frame: VideoFrame) -> np.ndarray:
        """Return (H, W, 3) uint8, RGB, upright."""
        orientation = _orientation(frame)
        # Setting up filters takes longer than using them, and frames are mostly alike.
        kind = (frame.width, frame.height, frame.format.name, orientation)
        if self._graph is None or self._graph[0] != kind:
            self._graph = (kind, _graph(frame, orientation, *self._size))
        graph = self._graph[1]
        graph.push(frame)
        scaled = graph.pull()
        assert isinstance(scaled, VideoFrame)
        return scaled.to_ndarray()


def is_upright(frame: VideoFrame) -> bool:
    """Tell whether a frame is shown as it is stored, neither turned nor mirrored."""
    return _orientation(frame) == _UPRIGHT


def _orientation(frame: VideoFrame) -> Orientation:
    """Return the signs (a, b, c, d) of the display matrix nearest to that of a frame."""
    side = frame.side_data.get("DISPLAYMATRIX")
    if side is None:
        return _UPRIGHT
    # Nine fixed-point numbers; signs and places of the largest four are all that matters, as the
    # frame is resized anyway.
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(cast(Buffer, side))[:36])
    # A turn by an odd angle goes to the nearest quarter, as players without that ability do.
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return (-1 if a < 0 else 1, 0, 0, -1 if d < 0 else 1)
    return (0, -1 if b < 0 else 1, -1 if c < 0 else 1, 0)


def _graph(frame: VideoFrame, orientation: Orientation, height: int, width: int) -> Graph:
    """Return filters that turn and resize frames like this one, those that decord uses."""
    # decord has these filters in this order: turning after resizing gives other pixels.
    graph = Graph()
    last = graph.add_buffer(
        width=frame.width, height=frame.height, format=frame.format, time_base=frame.time_base
    )
    scale = ("scale", f"{width}:{height}:flags=bilinear")
    for name, arguments in [*_FILTERS[orientation], scale, ("format", "rgb24")]:
        following = graph.add(name, arguments)
        last.link_to(following)
        last = following
    last.link_to(graph.add("buffersink"))
    graph.configure()
    return graph
