"""Small media files made on the spot, with PyAV, for the tests of every part.

Pictures are smooth and differ from frame to frame: frame `i` of `n` has the grey level of
`frame_level(i, n)` in its lower half and fixed colours above, so a test can tell which frame it got
and which way up it is.
"""

from __future__ import annotations

import io
import math
import multiprocessing
import os
import struct
import wave
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
from PIL import Image

AV1 = "libsvtav1"
"""The AV1 encoder. Run by root it asks for real-time scheduling, and its process then comes before
all others of the machine for good: so it is only run in a process of its own."""

os.environ.setdefault("SVT_LOG", "0")  # it talks to stderr otherwise


def frame_level(index: int, num_frames: int) -> int:
    """Grey level (20..235) of the lower half of frame `index`."""
    return 20 + round(215 * index / max(num_frames - 1, 1))


def frame_picture(index: int, num_frames: int, width: int, height: int) -> np.ndarray:
    """(height, width, 3) uint8: red upper left, blue upper right, `frame_level` below."""
    picture = np.full((height, width, 3), frame_level(index, num_frames), np.uint8)
    picture[: height // 2, : width // 2] = (220, 30, 30)
    picture[: height // 2, width // 2 :] = (30, 30, 220)
    return picture


def numbered_picture(index: int, width: int = 160, height: int = 120) -> np.ndarray:
    """(height, width, 3) uint8 that tells its number and which way up it is.

    Corners: red, blue in the upper quarter, green, yellow in the lower one. Between them two rows
    of five blocks, white where a bit of the number is set; the first block is the lowest bit.
    """
    picture = np.full((height, width, 3), 128, np.uint8)
    quarter, half = height // 4, width // 2
    picture[:quarter, :half], picture[:quarter, half:] = (220, 20, 20), (20, 20, 220)
    picture[3 * quarter :, :half], picture[3 * quarter :, half:] = (20, 200, 20), (220, 200, 20)
    for bit in range(10):
        row, column = divmod(bit, 5)
        block = picture[quarter * (1 + row) :, column * width // 5 :]
        block[:quarter, : width // 5] = 235 if index >> bit & 1 else 20
    return picture


def read_corners(picture: np.ndarray) -> str:
    """The colours of the corners, row by row; `RBGY` for an upright `numbered_picture`."""
    height, width = picture.shape[:2]
    corners = ""
    for row in (0.12, 0.88):
        for column in (0.12, 0.88):
            red, green, blue = picture[int(row * height), int(column * width)].astype(int)
            warm = "Y" if green > 130 else "R"
            cold = "B" if blue > 140 else "G" if green > 130 else "?"
            corners += warm if red > 140 else cold
    return corners


def read_number(picture: np.ndarray) -> int | None:
    """The number of a `numbered_picture` of any size; None if it is not upright."""
    if read_corners(picture) != "RBGY":
        return None
    height, width = picture.shape[:2]
    number = 0
    for bit in range(10):
        row, column = divmod(bit, 5)
        y, x = int((0.375 + 0.25 * row) * height), int((column + 0.5) / 5 * width)
        number |= int(picture[y - 2 : y + 3, x - 2 : x + 3].mean() > 128) << bit
    return number


def write_numbered(
    path: Path,
    times: Sequence[float],
    *,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rate: int = 25,
    ticks: int | None = None,
    size: tuple[int, int] = (160, 120),
    options: dict[str, str] | None = None,
    container: dict[str, str] | None = None,
    b_frames: int | None = None,
    gop: int | None = None,
    matrix: Sequence[int] | None = None,
    sound: np.ndarray | None = None,
    sound_start: float = 0.0,
    sound_codec: str = "aac",
    sound_rate: int = 16000,
    format: str | None = None,
) -> Path:
    """A video of numbered pictures, one at each of the times (in seconds).

    Args:
        ticks: of a second, to which the times are rounded; the rate unless given.
        options: of the encoder.
        container: options of the muxer.
        matrix: display matrix of the track.
        sound: (C, L) float32 waveform that begins at `sound_start` seconds.
        format: of the container; otherwise by the suffix of `path`.
    """
    if codec == AV1 and multiprocessing.parent_process() is None:
        given = {name: value for name, value in locals().items() if name not in ("path", "times")}
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(write_numbered, path, times, **given).result()
    time_base = Fraction(1, ticks or rate)
    with av.open(str(path), "w", format=format, options=container or {}) as file:
        stream: Any = file.add_stream(codec, rate=rate)
        (stream.width, stream.height), stream.pix_fmt = size, pix_fmt
        stream.codec_context.time_base = time_base
        stream.codec_context.thread_count = 1
        stream.bit_rate = 1_000_000
        stream.options = options or {}
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        if gop is not None:
            stream.codec_context.gop_size = gop
        if matrix is not None:
            stream.set_display_matrix(matrix)
        if sound is not None:
            track: Any = file.add_stream(sound_codec, rate=sound_rate, layout=_layout(len(sound)))
        for index, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(numbered_picture(index, *size), format="rgb24")
            frame.pts, frame.time_base = round(time / time_base), time_base
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if sound is not None:
            encode_sound(file, track, sound, sound_rate, start=sound_start)
    return path


_VOP = b"\0\0\1\xb6"
"""Start of a picture in MPEG-4 part 2; two bits follow: 0 is an I picture, 1 a P, 2 a B picture."""


def _empty_vop(vop: bytes) -> bytes:
    """An MPEG-4 picture of 25 ticks/s that repeats the last one, with the time of another."""
    start = vop.find(_VOP) + len(_VOP)
    bits = "".join(f"{byte:08b}" for byte in vop[start : start + 8])
    end = bits.index("0", 2) + 1  # whole seconds, in ones
    head = f"01{bits[2 : end + 6]}100"  # P, time, marker, time in ticks (5 bits), marker, empty
    head += "1" * (-len(head) % 8)
    return _VOP + int(head, 2).to_bytes(len(head) // 8, "big")


def _copy_packets(source: Path, target: Path, packets: Sequence[tuple[bytes, bool]]) -> Path:
    """Writes packets, at 25 a second, as a video with the header of another file."""
    with av.open(str(source)) as old, av.open(str(target), "w") as new:
        stream: Any = new.add_stream_from_template(old.streams.video[0])
        for index, (data, is_key) in enumerate(packets):
            packet = av.Packet(data)
            packet.stream, packet.is_keyframe = stream, is_key
            packet.pts = packet.dts = index
            packet.duration = 1
            packet.time_base = Fraction(1, 25)
            new.mux(packet)
    return target


def _packets(path: Path) -> list[tuple[bytes, bool]]:
    with av.open(str(path)) as file:
        return [(bytes(p), p.is_keyframe) for p in file.demux(video=0) if p.size]


def insert_empty_vops(source: Path, target: Path, indices: Sequence[int]) -> Path:
    """An MPEG-4 video with pictures that repeat the last one, as encoders write for no change.

    Args:
        source: without B pictures, 25 frames a second.
        indices: in the new file, of the pictures that are inserted.
    """
    packets = _packets(source)
    for index in sorted(indices):
        packets.insert(index, (_empty_vop(packets[index - 1][0]), False))
    return _copy_packets(source, target, packets)


def hide_vp8_frames(source: Path, target: Path, indices: Sequence[int]) -> Path:
    """A VP8 video in which some frames are decoded but not shown, as alternate references are.

    Args:
        source: 25 frames a second.
        indices: of the frames that get hidden.
    """
    packets = [
        (bytes([data[0] & ~16]) + data[1:] if index in indices else data, is_key)
        for index, (data, is_key) in enumerate(_packets(source))
    ]
    return _copy_packets(source, target, packets)


def pack_b_pictures(source: Path, target: Path) -> Path:
    """An AVI as DivX and Xvid write them: each B picture lies in the packet of the one it needs.

    Args:
        source: an AVI of MPEG-4 with single B pictures, 25 frames a second.
    """
    packets, packed = _packets(source), []
    data, is_key = packets[0]
    place = data.find(_VOP)
    packets[0] = (data[:place] + b"\0\0\1\xb2DivX503b1393p" + data[place:], is_key)
    while packets:
        data, is_key = packets.pop(0)
        if packets and packets[0][0][packets[0][0].find(_VOP) + 4] >> 6 == 2:
            packed += [(data + packets.pop(0)[0], is_key), (_empty_vop(data), False)]
        else:
            packed.append((data, is_key))
    return _copy_packets(source, target, packed)


def cut_transport_stream(path: Path, fraction: float) -> Path:
    """Drops the first `fraction` of a transport stream but keeps its tables, as recorders do."""
    data = path.read_bytes()
    packets = [data[i : i + 188] for i in range(0, len(data) - 187, 188)]
    tables = [p for p in packets[:20] if (p[1] & 0x1F) << 8 | p[2] in (0, 17, 0x1000)][:3]
    path.write_bytes(b"".join(tables + packets[int(len(packets) * fraction) :]))
    return path


def write_gif_bomb(path: Path, *, side: int, num_frames: int) -> Path:
    """A GIF of some kilobytes whose frames are single pixels on a huge canvas."""
    head = (
        b"GIF89a" + struct.pack("<HHBBB", side, side, 0x80, 0, 0) + bytes([0, 0, 0, 255, 255, 255])
    )
    pause = b"\x21\xf9\x04\x00\x0a\x00\x00\x00"
    pixel = b"\x2c" + struct.pack("<HHHHB", 0, 0, 1, 1, 0) + b"\x02\x02\x44\x01\x00"
    path.write_bytes(head + (pause + pixel) * num_frames + b";")
    return path


def write_growing(path: Path, sides: Sequence[int]) -> Path:
    """A motion JPEG whose frames are each of another size; the header knows the first one only."""
    jpegs = []
    for index, side in enumerate(sides):
        buffer = io.BytesIO()
        Image.fromarray(numbered_picture(index, side, side)).save(buffer, "JPEG")
        jpegs.append((buffer.getvalue(), True))
    first = write_numbered(
        path.with_name(f"first{path.suffix}"),
        [0],
        codec="mjpeg",
        pix_fmt="yuvj420p",
        size=(sides[0], sides[0]),
    )
    return _copy_packets(first, path, jpegs)


def tone(seconds: float, rate: int = 16000, hertz: float = 440.0, channels: int = 1) -> np.ndarray:
    """(channels, samples) float32 sine of amplitude 0.5; channel `c` has `c + 1` times `hertz`."""
    time = np.arange(round(seconds * rate)) / rate
    waves = [0.5 * np.sin(2 * math.pi * hertz * (c + 1) * time) for c in range(channels)]
    return np.stack(waves).astype(np.float32)


def write_video(
    path: Path,
    *,
    num_frames: int = 16,
    width: int = 64,
    height: int = 48,
    fps: int = 8,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    sound: np.ndarray | None = None,
    sound_rate: int = 16000,
    keyframe_every: int = 8,
    times: Sequence[float] | None = None,
    options: dict[str, str] | None = None,
    codec_options: dict[str, str] | None = None,
) -> Path:
    """A video file; the container follows the suffix of `path`.

    Args:
        sound: (C, L) float32 waveform at `sound_rate` Hz; None writes no sound track.
        options: of the container, such as `movflags`.
        codec_options: of the encoder, such as `x264-params`.
        times: seconds of each frame, for a variable frame rate; None spaces them by `1 / fps`.
    """
    if codec == AV1 and multiprocessing.parent_process() is None:
        given = {name: value for name, value in locals().items() if name != "path"}
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(write_video, path, **given).result()
    time_base = Fraction(1, 1000) if times is not None else Fraction(1, fps)
    with av.open(str(path), "w", options=options or {}) as container:
        stream: Any = container.add_stream(codec, rate=fps)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = time_base
        stream.codec_context.gop_size = keyframe_every
        stream.codec_context.thread_count = 1
        if codec_options:
            stream.options = codec_options
        audio: Any = None
        if sound is not None:
            audio = container.add_stream("aac", rate=sound_rate, layout=_layout(len(sound)))
        for index in range(num_frames):
            picture = frame_picture(index, num_frames, width, height)
            frame = av.VideoFrame.from_ndarray(picture, format="rgb24")
            frame.time_base = time_base
            frame.pts = index if times is None else round(times[index] * 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
        if audio is not None and sound is not None:
            encode_sound(container, audio, sound, sound_rate)
    return path


def write_audio(path: Path, sound: np.ndarray, rate: int = 16000, codec: str | None = None) -> Path:
    """A sound file (`.wav`, `.flac`, `.mp3`, `.m4a`, `.ogg`) of a (C, L) float32 waveform."""
    codecs = {".wav": "pcm_s16le", ".flac": "flac", ".mp3": "libmp3lame", ".ogg": "libopus"}
    with av.open(str(path), "w") as container:
        name = codec or codecs.get(path.suffix, "aac")
        stream = container.add_stream(name, rate=rate, layout=_layout(len(sound)))
        encode_sound(container, stream, sound, rate)
    return path


def write_wav_header_only(path: Path, *, rate: int = 16000, num_samples: int = 0) -> Path:
    """A 16-bit mono WAV of silence, with no codec involved and any (absurd) sample rate."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(rate)
        file.writeframes(bytes(2 * num_samples))
    return path


def write_picture(path: Path, width: int = 40, height: int = 30, mode: str = "RGB") -> Path:
    """A picture file with the colours of `frame_picture`, converted to a PIL `mode`."""
    Image.fromarray(frame_picture(1, 2, width, height)).convert(mode).save(path)
    return path


def set_rotation(path: Path, degrees: int) -> Path:
    """Marks an MP4 as filmed with a phone held sideways: players turn it clockwise by `degrees`."""
    cos, sin = round(math.cos(math.radians(degrees))), round(math.sin(math.radians(degrees)))
    one = 1 << 16
    matrix = struct.pack(">9i", cos * one, sin * one, 0, -sin * one, cos * one, 0, 0, 0, 1 << 30)
    data = bytearray(path.read_bytes())
    start = data.index(b"tkhd") + 4 + 40
    data[start : start + 36] = matrix
    path.write_bytes(data)
    return path


def truncate(path: Path, fraction: float) -> Path:
    """Keeps only the first `fraction` of the bytes, like a download that broke off."""
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def corrupt(path: Path, start: float = 0.3, end: float = 0.9) -> Path:
    """Overwrites the bytes between two fractions of the file with noise; the head stays intact."""
    data = bytearray(path.read_bytes())
    low, high = int(len(data) * start), int(len(data) * end)
    data[low:high] = np.random.default_rng(0).bytes(high - low)
    path.write_bytes(data)
    return path


def broken_files(folder: Path) -> dict[str, Path]:
    """Files that no reader can use, by what is wrong with them."""
    makers: dict[str, Callable[[Path], object]] = {
        "empty.mp4": lambda p: p.write_bytes(b""),
        "text.mp4": lambda p: p.write_text("this is not a video\n" * 50),
        "page.mp4": lambda p: p.write_text("<!DOCTYPE html><html><body>404</body></html>"),
        "archive.mp4": lambda p: p.write_bytes(b"PK\x03\x04" + bytes(200)),
        "noise.mp4": lambda p: p.write_bytes(np.random.default_rng(1).bytes(4096)),
        "playlist.mp4": lambda p: p.write_text("#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:9/a.ts\n"),
        "headless.mp4": lambda p: truncate(write_video(p), 0.5),
        "folder.mp4": lambda p: p.mkdir(),
        "missing.mp4": lambda p: None,
    }
    for name, make in makers.items():
        make(folder / name)
    return {name: folder / name for name in makers}


def _layout(channels: int) -> str:
    return {1: "mono", 2: "stereo", 6: "5.1"}[channels]


def encode_sound(
    container: Any, stream: Any, sound: np.ndarray, rate: int, *, start: float = 0.0
) -> None:
    """Writes a (C, L) float32 waveform to a sound track of an open PyAV container.

    Args:
        start: seconds at which the sound begins.
    """
    resampler = av.AudioResampler(stream.format.name, stream.layout.name, rate)
    shift = round(start * rate)
    for begin in range(0, sound.shape[1], 4096):
        piece = np.ascontiguousarray(sound[:, begin : begin + 4096])
        frame = av.AudioFrame.from_ndarray(piece, format="fltp", layout=_layout(len(sound)))
        frame.sample_rate, frame.pts, frame.time_base = rate, shift + begin, Fraction(1, rate)
        for converted in resampler.resample(frame):
            container.mux(stream.encode(converted))
    container.mux(stream.encode(None))


def write_timed_sound(
    path: Path,
    sound: np.ndarray,
    rate: int = 48000,
    *,
    codec: str = "aac",
    layout: str = "mono",
    start: float = 0.0,
    pause: tuple[float, float] | None = None,
    num_frames: int = 0,
    picture_start: float = 0.0,
) -> Path:
    """A clip of `num_frames` grey frames at 25 per second (none: no video) and a sound of (C, L).

    Args:
        layout: FFmpeg's name of the channels, such as `7.1`.
        start: seconds at which the sound begins.
        pause: seconds of the sound after which its time stamps jump, and by how much.
        picture_start: seconds at which the first frame is shown.
    """
    with av.open(str(path), "w") as container:
        video: Any = None
        if num_frames:
            video = container.add_stream("libx264", rate=25)
            video.width = video.height = 64
            video.pix_fmt, video.codec_context.max_b_frames = "yuv420p", 0
        track: Any = container.add_stream(codec, rate=rate, layout=layout)
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), 99, np.uint8), format="rgb24")
            frame.pts, frame.time_base = index + round(25 * picture_start), Fraction(1, 25)
            container.mux(video.encode(frame))
        if num_frames:
            container.mux(video.encode(None))
        resampler = av.AudioResampler(track.format.name, track.layout.name, rate)
        size = track.codec_context.frame_size or 1024
        for begin in range(0, sound.shape[1], size):
            # Packed samples: PyAV handles planes of eight or more channels wrongly.
            piece = np.ascontiguousarray(sound[:, begin : begin + size].T).reshape(1, -1)
            packet = av.AudioFrame.from_ndarray(piece, format="flt", layout=layout)
            jump = pause[1] if pause and begin >= pause[0] * rate else 0.0
            packet.sample_rate, packet.time_base = rate, Fraction(1, rate)
            packet.pts = begin + round((start + jump) * rate)
            for converted in resampler.resample(packet):
                container.mux(track.encode(converted))
        container.mux(track.encode(None))
    return path
