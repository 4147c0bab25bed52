"""Check that all kinds of video files are read right: frames, times, orientation and sound.

    python -m benchmarks.media_sweep [--every N] [--write docs/media.md]

Writes every combination of container, codec and options that PyAV can write. The frames carry
their number (`tests.media.numbered_picture`), the sound has bursts at known times. Each file is
read with decord and without it. A result is right, or a clear refusal, or wrong.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

import av
import numpy as np

from tests import media
from video_llama.processors import video_reader
from video_llama.processors.settings import VideoEvalSettings
from video_llama.processors.waveform import open_sound
from video_llama.types import MediaError

NUM_FRAMES, RATE = 60, 25

CONTAINERS = (
    *("mp4", "mov", "mkv", "webm", "avi", "ts", "mpg", "flv", "3gp", "m4v", "asf", "nut", "mxf"),
    *("vob", "ogv", "ivf", "gif"),
)

MPEG_ONLY = {"ts", "mpg", "vob"}
"""Containers that nothing reads other codecs from, though they can be written."""

H264 = "bframes=3:b-adapt=0:keyint=20:min-keyint=20:scenecut=0"

HIDDEN = {"auto-alt-ref": "1", "lag-in-frames": "16", "deadline": "good"}

CODECS: dict[str, dict[str, Any]] = {
    "h264": {"codec": "libx264", "options": {"x264-params": H264}},
    "h264 no B-frames": {"codec": "libx264", "options": {"x264-params": "bframes=0:keyint=20"}},
    "h264 one key frame": {"codec": "libx264", "options": {"x264-params": "keyint=infinite"}},
    "h264 open groups": {"codec": "libx264", "options": {"x264-params": H264 + ":open-gop=1"}},
    "h264 intra refresh": {
        "codec": "libx264",
        "options": {"x264-params": "keyint=20:intra-refresh=1:bframes=0"},
    },
    "h264 all key frames": {"codec": "libx264", "options": {"x264-params": "keyint=1"}},
    "h264 interlaced": {"codec": "libx264", "options": {"x264-params": H264 + ":tff=1"}},
    "h264 10 bit": {"codec": "libx264", "pix_fmt": "yuv420p10le", "gop": 20},
    "hevc open groups": {
        "codec": "libx265",
        "options": {
            "x265-params": "keyint=20:bframes=4:log-level=none:pools=1",
            "preset": "ultrafast",
        },
    },
    "hevc closed groups": {
        "codec": "libx265",
        "options": {
            "x265-params": "keyint=20:open-gop=0:bframes=3:log-level=none:pools=1",
            "preset": "ultrafast",
        },
    },
    "av1": {"codec": media.AV1, "gop": 20, "options": {"preset": "12"}},
    "vp8": {"codec": "libvpx", "gop": 20, "options": {"deadline": "realtime", "cpu-used": "8"}},
    "vp8 hidden frames": {
        "codec": "libvpx",
        "gop": 40,
        "options": {**HIDDEN, "cpu-used": "4"},
    },
    "vp9": {"codec": "libvpx-vp9", "gop": 20, "options": {"deadline": "realtime", "cpu-used": "8"}},
    "vp9 hidden frames": {
        "codec": "libvpx-vp9",
        "gop": 40,
        "options": {**HIDDEN, "cpu-used": "5"},
    },
    "mpeg4": {"codec": "mpeg4", "b_frames": 0, "gop": 12},
    "mpeg4 1 B-frame": {"codec": "mpeg4", "b_frames": 1, "gop": 100},
    "mpeg4 2 B-frames": {"codec": "mpeg4", "b_frames": 2, "gop": 12},
    "mpeg4 xvid tag": {"codec": "mpeg4", "b_frames": 2, "gop": 250},
    "mpeg2": {"codec": "mpeg2video", "b_frames": 0, "gop": 12},
    "mpeg2 B-frames": {"codec": "mpeg2video", "b_frames": 2, "gop": 12},
    "mpeg1": {"codec": "mpeg1video", "b_frames": 2, "gop": 12},
    "h263": {"codec": "h263", "size": (176, 144)},
    "flv1": {"codec": "flv"},
    "wmv1": {"codec": "wmv1"},
    "wmv2": {"codec": "wmv2"},
    "msmpeg4v2": {"codec": "msmpeg4v2"},
    "msmpeg4v3": {"codec": "msmpeg4"},
    "mjpeg": {"codec": "mjpeg", "pix_fmt": "yuvj420p"},
    "prores": {"codec": "prores_ks", "pix_fmt": "yuv422p10le"},
    "ffv1": {"codec": "ffv1"},
    "ffv1 groups": {"codec": "ffv1", "gop": 10},
    "huffyuv": {"codec": "huffyuv", "pix_fmt": "yuv422p"},
    "ffvhuff": {"codec": "ffvhuff"},
    "utvideo": {"codec": "utvideo"},
    "png": {"codec": "png", "pix_fmt": "rgb24"},
    "qtrle": {"codec": "qtrle", "pix_fmt": "rgb24"},
    "raw": {"codec": "rawvideo"},
    "magicyuv": {"codec": "magicyuv"},
    "jpeg2000": {"codec": "jpeg2000"},
    "cfhd": {"codec": "cfhd", "pix_fmt": "yuv422p10le"},
    "svq1": {"codec": "svq1", "pix_fmt": "yuv410p"},
    "zmbv": {"codec": "zmbv", "pix_fmt": "bgr0"},
    "gif": {"codec": "gif", "pix_fmt": "rgb8"},
}
"""Arguments of `tests.media.write_numbered`, by what a table calls them."""

STEADY = [i / RATE for i in range(NUM_FRAMES)]

_gaps = np.random.default_rng(7).integers(1, 8, NUM_FRAMES) / RATE

TIMES = {
    "variable": [0.0, *np.cumsum(_gaps)[:-1].tolist()],
    "a pause of 5 s": [t + (5.0 if i >= 30 else 0.0) for i, t in enumerate(STEADY)],
    "begins 2 s late": [t + 2.0 for t in STEADY],
}
"""Times of the frames other than a steady rate; all on the grid of `RATE`, which AVI needs."""

MATRICES: dict[str, tuple[tuple[int, int, int, int], str]] = {
    "mirrored": ((-1, 0, 0, 1), "BRYG"),
    "upside down, mirrored": ((1, 0, 0, -1), "GYRB"),
    "half a turn": ((-1, 0, 0, -1), "YGBR"),
    "a quarter clockwise": ((0, 1, -1, 0), "GRYB"),
    "a quarter counterclockwise": ((0, -1, 1, 0), "BYRG"),
    "along the diagonal": ((0, 1, 1, 0), "RGBY"),
    "along the other diagonal": ((0, -1, -1, 0), "YBGR"),
}
"""Display matrices (a, b, c, d) and where they put the corners of a numbered picture."""

SOUNDS = {
    "mp4": "aac",
    "mov": "pcm_s16le",
    "mkv": "libopus",
    "webm": "libopus",
    "ts": "mp2",
    "flv": "aac",
    "3gp": "aac",
    "asf": "wmav2",
}
"""A codec of sound for each container."""

BURSTS = (0.3, 0.9, 1.7)
"""Seconds after the start of a sound at which a tone begins."""


@dataclass
class Case:
    """One file to write and what it has to give.

    Attributes:
        table: heading of the table that the result belongs to.
        row: of that table.
        column: of that table, a container.
        writing: arguments of `write_numbered`.
        times: of the frames, in seconds.
        corners: what `read_corners` has to give.
        sound_start: seconds; None for a file without sound.
    """

    table: str
    row: str
    column: str
    writing: dict[str, Any]
    times: list[float] = field(default_factory=lambda: STEADY)
    corners: str = "RBGY"
    sound_start: float | None = None


def cases() -> Iterator[Case]:
    """Yield all combinations, also those that cannot be written."""
    for name, writing in CODECS.items():
        for container in CONTAINERS:
            if container not in MPEG_ONLY or name.startswith(("h264", "hevc", "mpeg")):
                yield Case("Frames", name, container, writing)
    for name, times in TIMES.items():
        for codec in ("h264", "mpeg4 2 B-frames", "vp8", "mjpeg", "gif"):
            for container in ("mp4", "mov", "mkv", "webm", "avi", "flv", "nut", "gif"):
                # AVI holds no times: nothing is late, and H.264 that is reordered loses its pauses.
                if container == "avi" and ("late" in name or codec == "h264"):
                    continue
                yield Case("Times", f"{codec}, {name}", container, CODECS[codec], times)
    for name, (signs, corners) in MATRICES.items():
        for codec in ("h264", "vp9", "mjpeg"):
            a, b, c, d = (sign << 16 for sign in signs)
            writing = {**CODECS[codec], "matrix": (a, b, 0, c, d, 0, 0, 0, 1 << 30)}
            for container in ("mp4", "mov"):
                yield Case("Orientation", f"{codec}, {name}", container, writing, corners=corners)
    for container, sound in SOUNDS.items():
        # Neither is a codec of MPEG transport streams, nor does FLV know it.
        codecs = (
            ("h264", "mpeg4 2 B-frames")
            if container == "ts"
            else ("h264", "mpeg4 2 B-frames", "vp8")
        )
        for codec in codecs:
            for start in (0.0, 0.5, 2.0):
                row = f"{codec}, sound {start:g} s late" if start else f"{codec}, together"
                writing = {**CODECS[codec], "sound_codec": sound}
                yield Case("Sound", row, container, writing, STEADY, "RBGY", start)
            late = [t + 1.6 for t in STEADY]
            row = f"{codec}, picture 1.6 s late"
            writing = {**CODECS[codec], "sound_codec": sound}
            yield Case("Sound", row, container, writing, late, "RBGY", 0.0)


def write(case: Case, path: Path) -> bool:
    """Write the file of a case; return whether PyAV can."""
    extra: dict[str, Any] = {}
    if case.sound_start is not None:
        rate = 48000
        t = np.arange(round(2.4 * rate)) / rate
        loud = sum(((t >= b) & (t < b + 0.1)).astype(np.float32) for b in BURSTS)
        wave = (0.5 * loud * np.sin(2 * np.pi * 1000 * t)).astype(np.float32)[None]
        extra = {"sound": wave, "sound_start": case.sound_start, "sound_rate": rate}
    try:
        media.write_numbered(path, case.times, rate=RATE, **case.writing, **extra)
    except (av.FFmpegError, ValueError, OverflowError):
        return False
    return path.stat().st_size > 0


def fault(case: Case, path: Path) -> str:
    """Read the file of a case; return what is wrong with the result, or `` if nothing is."""
    clip = VideoEvalSettings(n_frms=8, image_size=160).build()(path)
    pictures = clip.frames.permute(1, 2, 3, 0).numpy()
    if clip.num_frames_total != NUM_FRAMES:
        return f"{clip.num_frames_total} frames counted"
    corners = {media.read_corners(picture) for picture in pictures}
    if corners != {case.corners}:
        return f"corners {corners}"
    if case.corners == "RBGY":
        numbers = [media.read_number(picture) for picture in pictures]
        if numbers != clip.indices:
            return f"frames {numbers} for {clip.indices}"
    start = case.times[0] if case.sound_start is None else 0.0
    true = [case.times[index] - start for index in clip.indices]
    off = float(np.abs(np.subtract(clip.seconds, true)).max())
    # Half a frame, and the rounding of the seconds to 0.1 s.
    if off > 0.5 / RATE + 0.05:
        return f"times off by {off:.2f} s"
    if case.sound_start is None:
        return ""
    # A sound that comes first begins with silence of its encoder, which TS and FLV do not mark.
    # The file's time line begins with it then, for sound and picture alike.
    first = video_reader.PyAvReader(path, height=8, width=8).timeline.seconds[0]
    return sound_fault(case.sound_start + first - case.times[0], path)


def sound_fault(start: float, path: Path) -> str:
    """Return how the bursts of a sound that begins at `start` are misplaced, or ``."""
    sound = open_sound(path)
    assert sound.kept is not None
    loud = np.abs(sound.kept[0].numpy()) > 0.15
    heard = np.flatnonzero(loud) / sound.rate
    begins = heard[np.flatnonzero(np.diff(heard, prepend=-1) > 0.2)]
    true = np.add(BURSTS, start)
    if len(begins) != len(true):
        return f"{len(begins)} bursts heard"
    off = float(np.abs(begins - true).max())
    return f"sound off by {1000 * off:.0f} ms" if off > 0.01 else ""


def check(case: Case, folder: Path) -> str | None:
    """Return `right`, `refused: …` or `wrong: …`; None if the file cannot be written."""
    path = folder / f"a.{case.column}"
    path.unlink(missing_ok=True)
    if not write(case, path):
        return None
    results = []
    for decord in (video_reader.decord_module, lambda: None):
        with patch.object(video_reader, "decord_module", decord):
            try:
                found = fault(case, path)
            except MediaError as error:
                return f"refused: {error.reason}"
        results.append(found)
    wrong = " / ".join(result for result in dict.fromkeys(results) if result)
    return f"wrong: {wrong}" if wrong else "right"


SIGNS = {"right": "●", "refused": "refused", "wrong": "WRONG"}

INTRODUCTION = """# Media files: what was tried, and what came out

Made by `python -m benchmarks.media_sweep --write docs/media.md`. {count} files, each a combination
of container, codec and options that PyAV can write, were read with decord and without it. Frames
carry their number, sounds have bursts at known times. ● is right: the frames are those asked for,
their number and their times are right (to half a frame), they are the right way up, and the sound
is at its place (to 10 ms). *refused* is an error that says why; the reasons stand below the tables.
An empty field cannot be written. {right} are right, {refused} refused, {wrong} wrong.

What reading a file may cost is bounded: `video_llama/processors/limits.py` lists the limits and the
environment variables that set them.
"""


def report(results: list[tuple[Case, str]]) -> str:
    """Return the Markdown page with one table for each kind of check."""
    counts = {kind: sum(r.startswith(kind) for _, r in results) for kind in SIGNS}
    lines = [INTRODUCTION.format(count=len(results), **counts)]
    for table in dict.fromkeys(case.table for case, _ in results):
        mine = [(case, result) for case, result in results if case.table == table]
        columns = list(dict.fromkeys(c for c in CONTAINERS for case, _ in mine if case.column == c))
        lines += [
            f"## {table}\n",
            f"| | {' | '.join(columns)} |",
            "|---" * (len(columns) + 1) + "|",
        ]
        for row in dict.fromkeys(case.row for case, _ in mine):
            found = {c.column: SIGNS[r.split(":")[0]] for c, r in mine if c.row == row}
            lines.append(f"| {row} | {' | '.join(found.get(c, '') for c in columns)} |")
        lines.append("")
    lines.append("## Refused\n")
    reasons = {
        f"* {c.row} in {c.column}: {r.partition(': ')[2]}" for c, r in results if r[1] == "e"
    }
    return "\n".join([*lines, *sorted(reasons)]) + "\n"


def main() -> int:
    """Run the sweep; return 1 if anything was read wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--every", type=int, default=1, help="check every Nth case only")
    parser.add_argument("--only", default="", help="check cases whose name holds this")
    parser.add_argument("--write", type=Path, help="a Markdown file to write the tables to")
    args = parser.parse_args()
    begin, results = time.monotonic(), []
    with tempfile.TemporaryDirectory() as folder:
        for case in list(cases())[:: args.every]:
            if args.only not in f"{case.table} {case.row} {case.column}":
                continue
            result = check(case, Path(folder))
            if result is not None:
                results.append((case, result))
                if result != "right":
                    print(case.table, "|", case.row, "|", case.column, "|", result, flush=True)
    counts = {kind: sum(r.startswith(kind) for _, r in results) for kind in SIGNS}
    print(f"{len(results)} files in {time.monotonic() - begin:.0f} s: {counts}")
    if args.write:
        args.write.write_text(report(results), encoding="utf-8")
    return 1 if counts["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
