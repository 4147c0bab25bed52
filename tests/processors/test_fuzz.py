"""No file, however damaged, ends the program, hangs it or takes all memory.

`python -m tests.processors.test_fuzz 2000` prints the figures of more files than the test has.
"""

from __future__ import annotations

import os
import random
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from PIL import Image

from tests import media
from tests.tiny_chat import answer, tiny_chat
from video_llama.chat.batch import BatchAnswerer
from video_llama.chat.engine import Chat
from video_llama.chat.requests import BatchRequest, RequestMedia
from video_llama.processors.decode import decode_file
from video_llama.processors.settings import AudioSettings, ImageEvalSettings, VideoEvalSettings
from video_llama.processors.worker import DecodingPool
from video_llama.types import MediaError

MAX_SECONDS = 20
MAX_BYTES = 2_000_000_000


def originals(folder: Path) -> list[Path]:
    """A good file of every kind that people have."""
    tone, wide = media.tone(2, 48000, channels=2), media.tone(1, 48000, channels=8)
    paths = [
        media.write_video(folder / "a.mp4", sound=tone, sound_rate=48000),
        media.write_video(
            folder / "front.mp4", sound=tone, sound_rate=48000, options={"movflags": "faststart"}
        ),
        media.write_video(folder / "a.mkv", sound=tone, sound_rate=48000),
        media.write_video(folder / "a.mov", codec="mpeg4", sound=tone, sound_rate=48000),
        media.write_video(folder / "a.avi", codec="mpeg4", sound=tone, sound_rate=48000),
        media.write_video(folder / "a.webm", codec="libvpx"),
        media.write_video(folder / "vp9.webm", codec="libvpx-vp9"),
        media.write_video(folder / "a.ts", codec="mpeg2video", fps=25, sound=tone),
        media.write_timed_sound(
            folder / "wide.mp4", wide, layout="7.1", num_frames=20, pause=(0.5, 1)
        ),
        *[media.write_audio(folder / f"a.{s}", tone, 48000) for s in ("wav", "mp3", "flac", "ogg")],
        media.write_audio(folder / "a.m4a", tone, 48000),
        media.write_timed_sound(folder / "wide.flac", wide, codec="flac", layout="7.1"),
        *[
            media.write_picture(folder / f"a.{suffix}", 160, 120)
            for suffix in ("png", "jpg", "webp", "tiff", "bmp", "avif", "jp2")
        ],
    ]
    frames = [Image.fromarray(media.frame_picture(i, 6, 80, 60)) for i in range(6)]
    for name in ("a.gif", "moving.png", "moving.webp"):
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], duration=120)
        paths.append(folder / name)
    return paths


def flip_bits(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 4, 16, 64, 256])):
        place = rng.randrange(len(data))
        data[place] ^= 1 << rng.randrange(8)


def flip_bits_of_the_header(data: bytearray, rng: random.Random) -> None:
    for _ in range(rng.choice([1, 2, 4, 8])):
        place = rng.randrange(min(len(data), 1024))
        data[place] ^= 1 << rng.randrange(8)


def cut(data: bytearray, rng: random.Random) -> None:
    del data[rng.randrange(1, len(data)) :]


def cut_out(data: bytearray, rng: random.Random) -> None:
    begin = rng.randrange(len(data))
    del data[begin : begin + rng.randrange(1, 5000)]
    data.extend(b"\0")


def overwrite(data: bytearray, rng: random.Random) -> None:
    begin = rng.randrange(len(data))
    length = min(rng.randrange(1, 2000), len(data) - begin)
    data[begin : begin + length] = rng.choice(
        [bytes(length), b"\xff" * length, rng.randbytes(length)]
    )


def extreme_numbers(data: bytearray, rng: random.Random) -> None:
    numbers = [0, 1, 0x7F, 0xFFFF, 0x10000, 0x00FFFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF]
    for _ in range(rng.choice([1, 2, 5])):
        place = rng.randrange(min(len(data), 4096))
        order = rng.choice(["big", "little"])
        number = rng.choice(numbers).to_bytes(4, order)  # type: ignore[arg-type]
        data[place : place + 4] = number


def swap_parts(data: bytearray, rng: random.Random) -> None:
    """Swaps two boxes of an mp4, or two slices of anything else."""
    names = (b"trak", b"mdia", b"stbl", b"stts", b"stsz", b"stsc", b"stco", b"tkhd", b"mdhd")
    places = [place for name in names if (place := bytes(data).find(name)) > 3]
    if len(places) > 1 and rng.random() < 0.7:
        first, second = rng.sample(places, 2)
        if rng.random() < 0.5:  # the names
            data[first : first + 4], data[second : second + 4] = (
                data[second : second + 4],
                data[first : first + 4],
            )
        else:  # whole boxes, in order
            first, second = sorted((first - 4, second - 4))
            sizes = [int.from_bytes(data[p : p + 4], "big") for p in (first, second)]
            a, b = data[first : first + sizes[0]], data[second : second + sizes[1]]
            data[second : second + sizes[1]] = a
            data[first : first + sizes[0]] = b
        return
    length = rng.randrange(1, max(2, len(data) // 4))
    first, second = (rng.randrange(max(1, len(data) - length)) for _ in range(2))
    a = data[first : first + length]
    data[first : first + length] = data[second : second + length]
    data[second : second + length] = a


CHANGES: list[Callable[[bytearray, random.Random], None]] = [
    *(flip_bits, flip_bits_of_the_header, cut, cut_out, overwrite, extreme_numbers, swap_parts),
]


def mutants(folder: Path, count: int, seed: int = 0) -> Iterator[Path]:
    """`count` damaged files, one after another; the same for the same seed."""
    sources = [(path, path.read_bytes()) for path in originals(folder)]
    for index in range(count):
        rng = random.Random(f"{seed} {index}")
        source, content = sources[index % len(sources)]
        data = bytearray(content)
        for change in rng.sample(CHANGES, rng.choice([1, 1, 2])):
            change(data, rng)
        path = folder / f"{index:05d}-{source.name}"
        path.write_bytes(data)
        yield path


def look(path: Path) -> tuple[str, int]:
    """In the worker: what became of a file, and the largest memory of the process so far."""
    processors = {
        "image": ImageEvalSettings(image_size=56).build(),
        "video": VideoEvalSettings(image_size=56).build(),
        "audio": AudioSettings().build(),
    }
    try:
        kind = decode_file(path, **processors).kind  # type: ignore[arg-type]
    except MediaError as error:
        return f"refused: {error.reason}", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return f"accepted as {kind}", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


@dataclass
class Figures:
    """Of many damaged files."""

    outcomes: Counter[str] = field(default_factory=Counter)
    slowest: tuple[float, str] = (0.0, "")
    most_bytes: int = 0
    worst: list[str] = field(default_factory=list)


def measure(folder: Path, count: int, seed: int = 0, keep: Path | None = None) -> Figures:
    """Decodes damaged files in a worker; those that end or fill it are kept in `keep`."""
    figures, pool = Figures(), DecodingPool(size=1)
    try:
        for path in mutants(folder, count, seed):
            pool.run(process_id, path, seconds=60)  # so that starting a child is not counted
            start = time.monotonic()
            try:
                outcome, kilobytes = pool.run(look, path)
                figures.most_bytes = max(figures.most_bytes, 1024 * kilobytes)
            except MediaError as error:  # the worker's own: the file ended, hung or filled it
                outcome = f"stopped: {error.reason}"
                figures.worst.append(f"{path.name}: {error.reason}")
                if keep is not None:
                    (keep / path.name).write_bytes(path.read_bytes())
            seconds = time.monotonic() - start
            figures.slowest = max(figures.slowest, (seconds, path.name))
            figures.outcomes[outcome.split(":")[0]] += 1
            path.unlink()
    finally:
        pool.close()
    return figures


def process_id(path: Path) -> int:
    return os.getpid()


@pytest.mark.slow
@pytest.mark.timeout(1500)
def test_damaged_files_are_answered_or_refused(tmp_path: Path) -> None:
    count = int(os.environ.get("VIDEO_LLAMA_FUZZ_FILES", "300"))
    figures = measure(tmp_path, count)
    assert sum(figures.outcomes.values()) == count
    assert figures.slowest[0] < MAX_SECONDS, figures.slowest
    assert figures.most_bytes < MAX_BYTES
    assert figures.outcomes["stopped"] <= count // 50, figures.worst
    # The damage is neither always deadly nor always harmless, or this would test nothing.
    assert figures.outcomes["refused"] > count // 5
    assert sum(n for what, n in figures.outcomes.items() if "accepted" in what) > count // 5


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_chat_and_a_batch_survive_damaged_files(tmp_path: Path) -> None:
    paths = [path.rename(tmp_path / f"kept-{path.name}") for path in mutants(tmp_path, 80, seed=1)]
    chat = tiny_chat()
    outcomes = Counter(outcome_of(chat, path) for path in paths[:40])
    assert outcomes["answered"] > 5
    assert outcomes["refused"] > 5
    options = {"temperature": 0.0, "max_new_tokens": 2}
    requests = [
        BatchRequest(index, "What is it?", (RequestMedia(path),), options)
        for index, path in enumerate(paths)
    ]
    results = BatchAnswerer(chat).answer(requests)
    assert [result.request.request_id for result in results] == list(range(80))
    assert all((result.answer is None) == bool(result.error) for result in results)
    assert sum(result.answer is not None for result in results[:40]) == outcomes["answered"]


def outcome_of(chat: Chat, path: Path) -> str:
    """What a chat makes of a file, which it may not take long over."""
    start, outcome = time.monotonic(), "answered"
    try:
        session = chat.start()
        session.add(path)
        answer(session, max_new_tokens=2)
    except MediaError:
        outcome = "refused"
    assert time.monotonic() - start < 2 * MAX_SECONDS, path.name
    return outcome


def main() -> None:
    count, seed = int(sys.argv[1]), int(sys.argv[2]) if len(sys.argv) > 2 else 0
    keep = Path(tempfile.mkdtemp(prefix="fuzz-"))
    start = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), count, seed, keep)
    print(f"{count} files, seed {seed}, {time.monotonic() - start:.0f} s: {dict(figures.outcomes)}")
    print(f"slowest {figures.slowest[0]:.1f} s ({figures.slowest[1]})")
    print(f"most memory {figures.most_bytes / 1e6:.0f} MB, with 300 MB of libraries")
    print(*figures.worst, f"kept in {keep}", sep="\n")


if __name__ == "__main__":
    from tests.processors import test_fuzz  # under a name that the worker can import

    test_fuzz.main()
