"""Pack a data set into webdataset tars, which train batch for batch as the files do.

Item i of the data set is sample i of the tars. What cannot be packed keeps its place, with the
reason, and is replaced in training as the broken file was. Media may be made smaller on the way, so
that training decodes fewer pixels. The same files give the same tars to the bit, on any machine
with the same encoder, so that tars of several runs or machines fit together.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from fractions import Fraction
from functools import partial
from hashlib import blake2b
from heapq import merge
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import InputContainer, OutputContainer
from av.packet import Packet
from av.video.frame import VideoFrame
from PIL import Image
from webdataset.writer import TarWriter

from video_llama.common.io import atomic_write, read_file
from video_llama.datasets.prepare.workers import Progress, parallel
from video_llama.datasets.records import Record, Records
from video_llama.datasets.shards import NOT_MEDIA, open_index
from video_llama.processors.image import FrameScaler
from video_llama.processors.media import find_audio, open_container, presentation_start, probe
from video_llama.processors.picture_file import load_image
from video_llama.processors.video_reader import PyAvReader
from video_llama.types import ConfigError, MediaError

JPEG_QUALITY = 95
TICKS = 90_000
"""Ticks per second in which frames are timed; all usual rates are whole numbers of them."""

VIDEO_OPTIONS = {
    "crf": "21",
    "preset": "veryfast",
    # The number of threads changes the bits, and there is a process for every core.
    "threads": "1",
    # x264's macroblock tree reads beyond pictures whose width is no multiple of 16: what lies there
    # in memory decides about bits. Without it, crf 21 has the size and error that 20 had with it.
    "x264-params": "mbtree=0",
}
MP4_SOUNDS = {"aac", "ac3", "alac", "flac", "mp3", "opus"}
"""Codecs of sound tracks that an mp4 can hold."""


def downscale(path: Path, size: int) -> tuple[bytes, str]:
    """Scale a picture or clip so that its shorter side is at most `size` pixels.

    Frames keep their times and the sound track is copied as it is. A sound file stays untouched.

    Returns:
        The content of the new file, and its suffix without a dot.

    Raises:
        MediaError: it cannot be read.
    """
    info = probe(path)
    # Encoding a sound anew would change it, and it is small beside pictures.
    if info.kind == "audio":
        return path.read_bytes(), path.suffix.lstrip(".").lower()
    if info.kind == "image":
        return _picture(path, size), "jpg"
    suffix = "mp4" if info.audio_codec in {None, *MP4_SOUNDS} else "mkv"
    content = io.BytesIO()
    with av.open(content, "w", format="matroska" if suffix == "mkv" else "mp4") as target:
        _write_clip(path, target, size)
    return content.getvalue(), suffix


def _picture(path: Path, size: int) -> bytes:
    picture = load_image(path)
    picture = picture.resize(_smaller(picture.size, size), Image.Resampling.BICUBIC)
    content = io.BytesIO()
    picture.save(content, "JPEG", quality=JPEG_QUALITY)
    return content.getvalue()


def _smaller(sides: tuple[int, int], size: int, multiple: int = 1) -> tuple[int, int]:
    scale = min(1.0, size / min(sides))
    width, height = (max(multiple, round(side * scale / multiple) * multiple) for side in sides)
    return width, height


def _write_clip(path: Path, target: OutputContainer, size: int) -> None:
    # The frames, their order and times are those that training reads from the file itself.
    reader = PyAvReader(path, height=size, width=size)
    reader.check_complete()
    if not reader.is_exact:
        reader.count()
    with open_container(path) as source:
        sound = find_audio(source)
        frames = reader.frames()
        first = next(frames, None)
        if first is None:
            raise MediaError(path, "none of its frames can be decoded")
        encoder, scale = _encoder(target, first[1], reader.fps, size)
        track = target.add_stream_from_template(sound) if sound else None
        packets = _sound_packets(source, sound) if sound else ()
        # Sound is written beside the frames of its time, so that a player need not jump.
        parts: Iterator[tuple[float, Any]] = merge(
            chain([first], frames), packets, key=itemgetter(0)
        )
        for seconds, part in parts:
            if isinstance(part, VideoFrame):
                small = VideoFrame.from_ndarray(scale(part), format="rgb24")
                small.pts, small.time_base = round(seconds * TICKS), Fraction(1, TICKS)
                target.mux(encoder.encode(small))
            else:
                part.stream = track
                target.mux(part)
        target.mux(encoder.encode(None))


def _sound_packets(
    source: InputContainer, sound: AudioStream
) -> Iterator[tuple[float, Packet[AudioStream]]]:
    """Yield the packets of a sound track and their seconds, on the clock of the frames."""
    assert sound.time_base is not None
    start = round(presentation_start(source) / sound.time_base)
    for packet in source.demux(sound):
        if packet.pts is not None and packet.dts is not None:
            packet.pts, packet.dts = packet.pts - start, packet.dts - start
            yield float(packet.pts * sound.time_base), packet


def _encoder(
    target: OutputContainer, frame: VideoFrame, fps: float, size: int
) -> tuple[Any, FrameScaler]:
    # A quarter turn swaps the sides, mirrored or not.
    turned = round(frame.rotation / 90) % 2
    sides = (frame.height, frame.width) if turned else (frame.width, frame.height)
    encoder: Any = target.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
    encoder.width, encoder.height = _smaller(sides, size, 2)
    encoder.pix_fmt, encoder.options = "yuv420p", VIDEO_OPTIONS
    encoder.codec_context.time_base = Fraction(1, TICKS)
    return encoder, FrameScaler(height=encoder.height, width=encoder.width)


PLAN = "pack.json"
"""File that says what the tars beside it were made of."""

_FINGERPRINT_ITEMS = 10_000


@dataclass(frozen=True)
class PackPlan:
    """What is packed and how, as for `pack`; a folder holds the tars of one plan."""

    name: str
    num_items: int
    samples_per_shard: int
    size: int | None
    fingerprint: str

    @property
    def num_shards(self) -> int:
        """Count the tars."""
        return -(-self.num_items // self.samples_per_shard)

    def tar(self, shard: int) -> str:
        """Return the file name of a tar."""
        return f"{self.name}-{shard:06d}.tar"

    @property
    def pattern(self) -> str:
        """Return the name of all tars, as `build_info.storage` takes it."""
        if self.num_shards == 1:
            return self.tar(0)
        return f"{self.name}-{{{0:06d}..{self.num_shards - 1:06d}}}.tar"


@dataclass(frozen=True)
class PackReport:
    """What `pack` did.

    Attributes:
        storage: the tars, as `build_info.storage` takes them.
        num_items: items of the data set.
        num_shards: tars of the data set.
        num_written: tars written this time; the others were there.
        failed: item id and reason of what could not be packed this time.
    """

    storage: str
    num_items: int
    num_shards: int
    num_written: int
    failed: tuple[tuple[str, str], ...]


def pack(
    name: str,
    records: Records,
    folder: Path,
    *,
    samples_per_shard: int = 1000,
    size: int | None = None,
    num_workers: int = 0,
    progress: Progress | None = None,
) -> PackReport:
    """Write a data set as tars with an index beside each; tars that are there already are kept.

    Args:
        name: of the data set; the tars are named after it.
        folder: where the tars go.
        samples_per_shard: items per tar.
        size: shorter side of pictures and clips, pixels; None copies the files as they are.
        num_workers: processes; 0 works in this one.
        progress: called with the tars done and the tars in all.

    Raises:
        ConfigError: the folder holds tars of another data set or with other options.
        DiskFullError: there was no room for a tar; those before it are whole.
    """
    # A tar is the unit of work: it is whole or not there, so that what is there can be kept.
    plan = PackPlan(name, len(records), samples_per_shard, size, _fingerprint(records))
    _claim(folder, plan)
    missing = [shard for shard in range(plan.num_shards) if not _done(folder, plan, shard)]
    work = partial(_write_shard, records, folder, plan)
    failed: list[tuple[str, str]] = []
    done = plan.num_shards - len(missing)
    for failures in parallel(work, missing, num_workers=num_workers):
        done += 1
        failed += failures
        if progress:
            progress(done, plan.num_shards)
    return PackReport(
        storage=str(folder / plan.pattern),
        num_items=len(records),
        num_shards=plan.num_shards,
        num_written=len(missing),
        failed=tuple(sorted(failed)),
    )


def _fingerprint(records: Records) -> str:
    """Hash text lengths and some names: tells two annotations of equal length apart."""
    # Not that of `loading`: folders that were begun with this one must go on.
    count = len(records)
    digest = blake2b(records.lengths(np.arange(count)).tobytes(), digest_size=8)
    for index in range(0, count, max(1, count // _FINGERPRINT_ITEMS)):
        digest.update(records.locate(index)[0].encode())
    return digest.hexdigest()


def _claim(folder: Path, plan: PackPlan) -> None:
    """Make the folder, or see that it belongs to the same plan; clear what a crash left."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / PLAN
    if path.exists():
        found = _read_plan(path)
        different = [key for key, value in asdict(plan).items() if found.get(key) != value]
        if different:
            given = ", ".join(f"{key} {asdict(plan)[key]}" for key in different)
            there = ", ".join(f"{key} {found.get(key)}" for key in different)
            raise ConfigError(
                f"{folder}: holds tars with {there}, but {given} was asked for; choose an empty "
                "folder, or the same data set and options to go on"
            )
    # Written also where it is there already: who cannot write the folder learns it before the work.
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(asdict(plan), indent=1), "utf-8")
    for leftover in folder.glob(f".{plan.name}-*.tmp"):
        leftover.unlink()


def _read_plan(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_bytes())
    except (ValueError, RecursionError):
        found = None
    if not isinstance(found, dict):
        raise ConfigError(
            f"{path}: {PLAN} is damaged: delete it to pack anew; nothing then says what the tars "
            "beside it were made of, so delete them too unless they are of this data set with "
            "these options"
        )
    return found


def _done(folder: Path, plan: PackPlan, shard: int) -> bool:
    tar = folder / plan.tar(shard)
    if not tar.exists():
        return False
    open_index(tar)  # made now if the process died between the two
    return True


def _write_shard(
    records: Records, folder: Path, plan: PackPlan, shard: int
) -> list[tuple[str, str]]:
    failed: list[tuple[str, str]] = []
    start = shard * plan.samples_per_shard
    stop = min(start + plan.samples_per_shard, plan.num_items)
    tar = folder / plan.tar(shard)
    # Nothing of the machine or the time goes into a tar: the same files give the same bytes.
    with (
        atomic_write(tar) as temporary,
        temporary.open("wb") as file,
        TarWriter(file, encoder=False, mtime=0, user="", group="") as writer,
    ):
        for sample in _samples(records, range(start, stop), plan.size, failed):
            writer.write(sample)
    open_index(tar)
    return failed


def _samples(
    records: Records, indices: range, size: int | None, failed: list[tuple[str, str]]
) -> Iterator[dict[str, Any]]:
    for index in indices:
        item_id = records.locate(index)[0]
        text: dict[str, Any] = {"item_id": item_id}
        sample: dict[str, Any] = {"__key__": f"{index:09d}"}
        try:
            record = records[index]
            text |= _text(record)
            content, suffix = _media(record, size)
            sample[suffix] = content
        except MediaError as error:
            # It keeps its number, or the tars would train on another order than the files.
            text["error"] = error.reason
            failed.append((item_id, error.reason))
        yield {**sample, "json": _json(text)}


def _json(text: dict[str, Any]) -> bytes:
    # A folder whose name is not UTF-8 stands in reasons as lone surrogates, which JSON can escape.
    return json.dumps(text, ensure_ascii=False).encode("utf-8", "backslashreplace")


def _text(record: Record) -> dict[str, Any]:
    if record.turns:
        return {"turns": [list(turn) for turn in record.turns]}
    return {"caption": record.caption}


def _media(record: Record, size: int | None) -> tuple[bytes, str]:
    with record.media.open() as path:
        if size is not None:
            try:
                return downscale(path, size)
            except MediaError as error:
                raise MediaError(record.path, error.reason) from error
        suffix = record.path.suffix.lstrip(".").lower()
        # A suffix that stands for text would hide the media from whoever reads the tar.
        usable = suffix.isascii() and suffix.isalnum() and suffix not in NOT_MEDIA
        return read_file(path), suffix if usable else "bin"
