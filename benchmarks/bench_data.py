"""How fast data reach the model, and what an annotation of ten million rows costs in memory.

    python -m benchmarks.bench_data [--clips N] [--rounds N] [--rows N]

Measured in turns, so that a busy machine slows all of them alike:
* `bare`: decord alone reads the very frames that training reads, resized, and drops them;
* `files_1`, `files_2`: batches of `webvid` from files, with so many workers;
* `shards_1`, `shards_2`: the same from webdataset tars.
`per_core` is samples per second of processor time, of all processes together, and `share_of_bare`
the median over the rounds of its ratio to bare decord's of the same round.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import video_llama.common.compat

import av
import numpy as np
import torch
from PIL import Image

from video_llama.common.io import package_file
from video_llama.datasets.base import BuildInfo
from video_llama.datasets.loading import TrainBatches, build_train_batches, make_loader
from video_llama.datasets.prepare.pack import pack
from video_llama.datasets.webvid import WebvidSettings
from video_llama.processors.video import VideoClip, VideoProcessor
from video_llama.processors.video_reader import decord_module
from video_llama.text.templates import TEMPLATES
from video_llama.text.tokenizer import load_tokenizer

RESULT = Path(__file__).parent / "results" / "data.json"
BATCH = 4
WIDTH, HEIGHT, FRAMES, RATE, BIT_RATE = 596, 336, 300, 25, 620_000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--clips", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--memory-of", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.memory_of:
        print(json.dumps(measure_memory(args.memory_of)))
        return
    with tempfile.TemporaryDirectory() as name:
        speed = bench_speed(Path(name), args.clips, args.rounds)
        memory = bench_memory(Path(name), args.rows)
    result = {"machine": machine(), "speed": speed, "memory": memory}
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


def machine() -> dict[str, Any]:
    return {
        "cores": os.cpu_count(),
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "load": round(os.getloadavg()[0], 1),
    }


@dataclass(frozen=True)
class Cost:
    """What all clips took: seconds of the clock, and of the processors."""

    wall: float
    cpu: float


def bench_speed(folder: Path, clips: int, rounds: int) -> dict[str, Any]:
    info, bit_rate = write_clips(folder / "clips", clips)
    report = pack("webvid", settings(info).read(info), folder / "tars", samples_per_shard=clips)
    ways: dict[str, Callable[[], None]] = {"bare": partial(bare, frames_of(info, clips))}
    for source, place in (("files", info), ("shards", BuildInfo(storage=report.storage))):
        batches = train_batches(settings(place))
        for workers in (1, 2):
            ways[f"{source}_{workers}"] = partial(load, batches, clips // BATCH, workers)
    costs: dict[str, list[Cost]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, way in ways.items():
            cost = cost_of(way)
            if number:  # the first round warms up
                costs[name].append(cost)
    about = {"width": WIDTH, "height": HEIGHT, "frames": FRAMES, "kbit_per_s": bit_rate}
    return {"clips": clips, "rounds": rounds, "clip": about, **summary(costs, clips)}


def cost_of(way: Callable[[], None]) -> Cost:
    wall, cpu = time.perf_counter(), sum(os.times()[:4])
    way()
    return Cost(time.perf_counter() - wall, sum(os.times()[:4]) - cpu)


def summary(costs: dict[str, list[Cost]], clips: int) -> dict[str, Any]:
    def median(values: Iterable[float]) -> float:
        return round(statistics.median(values), 3)

    return {
        "samples_per_second": {n: median(clips / c.wall for c in cs) for n, cs in costs.items()},
        "per_core": {n: median(clips / c.cpu for c in cs) for n, cs in costs.items()},
        "share_of_bare": {
            name: median(b.cpu / c.cpu for b, c in zip(costs["bare"], found, strict=True))
            for name, found in costs.items()
        },
    }


def write_clips(folder: Path, count: int) -> tuple[BuildInfo, int]:
    """Clips like WebVid's: size, frame rate, length, bit rate and distance of key frames."""
    folder.mkdir()
    rows = ["videoid,page_dir,name"]
    for number in range(count):
        write_clip(folder / f"{number}.mp4", number)
        rows.append(f"{number},,A clip that shows something {number}")
    (folder / "a.csv").write_text("\n".join(rows))
    size = sum(path.stat().st_size for path in folder.glob("*.mp4")) / count
    info = BuildInfo(anno_dir=str(folder / "a.csv"), videos_dir=str(folder))
    return info, round(size * 8 / 1000 / (FRAMES / RATE))


def write_clip(path: Path, seed: int) -> None:
    """A camera that pans over a picture with detail of every size, and a little grain."""
    random = np.random.default_rng(seed)
    side = (HEIGHT + FRAMES, WIDTH + FRAMES)
    scene = np.zeros((*side, 3), np.float32)
    for scale in (4, 16, 64):
        small = random.integers(0, 256, (side[0] // scale + 1, side[1] // scale + 1, 3), np.uint8)
        large = Image.fromarray(small).resize(side[::-1], Image.Resampling.BICUBIC)
        scene += np.asarray(large, np.float32) / 3
    with av.open(str(path), "w") as container:
        stream: Any = container.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        stream.bit_rate, stream.codec_context.gop_size = BIT_RATE, 250
        for number in range(FRAMES):
            top, left = number // 3, number // 2
            view = scene[top : top + HEIGHT, left : left + WIDTH]
            grain = random.normal(0, 3, (HEIGHT, WIDTH, 1)).astype(np.float32)
            picture = np.clip(view + grain, 0, 255).astype(np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))


def settings(info: BuildInfo) -> WebvidSettings:
    return WebvidSettings(build_info=info, bucket_batches=1)


def train_batches(entry: WebvidSettings) -> TrainBatches:
    return build_train_batches(
        {"webvid": entry},
        tokenizer=load_tokenizer(package_file("presets/tiny/llama")),
        template=TEMPLATES.get("llama_v2"),
        batch_size=BATCH,
        seed=1,
    )


def load(batches: TrainBatches, steps: int, workers: int) -> None:
    for _ in make_loader(batches, start=0, stop=steps, num_workers=workers, timeout=300):
        pass


def frames_of(info: BuildInfo, clips: int) -> list[tuple[str, list[int]]]:
    """Clips and frames in the order in which training reads them: some cost more than others."""
    wanted: list[tuple[str, list[int]]] = []

    def note(processor: VideoProcessor, path: str | Path, **keys: Any) -> VideoClip:
        clip = read(processor, path, **keys)
        wanted.append((str(path), clip.indices))
        return clip

    read = VideoProcessor.__call__
    with patch.object(VideoProcessor, "__call__", note):
        load(train_batches(settings(info)), clips // BATCH, workers=0)
    return wanted


def bare(wanted: list[tuple[str, list[int]]]) -> None:
    """Decord alone reads the same frames."""
    decord = decord_module()
    assert decord is not None, "the comparison needs decord"
    for path, indices in wanted:
        reader = decord.VideoReader(path, width=224, height=224, num_threads=1)
        reader.get_batch(indices).asnumpy()


def bench_memory(folder: Path, rows: int) -> dict[str, Any]:
    table = folder / "large.csv"
    write_rows(table, rows)
    command = [sys.executable, "-m", "benchmarks.bench_data", "--memory-of", str(table)]
    environment = {**os.environ, "XDG_CACHE_HOME": str(folder / "cache")}
    found = {}
    for name in ("first_time", "from_the_cache"):
        result = subprocess.run(
            command, env=environment, stdout=subprocess.PIPE, text=True, check=True
        )
        found[name] = json.loads(result.stdout)
    return {"rows": rows, "csv_mb": round(table.stat().st_size / 1e6), **found}


def write_rows(table: Path, rows: int) -> None:
    """Rows as long as WebVid's: ids of 8 digits, folders of 13 signs, captions of 50 to 110."""
    words = "a the man woman walks slowly through green park city street sea at sunset with dog"
    generator = np.random.default_rng(0)
    vocabulary = np.array(words.split())
    texts = [" ".join(generator.choice(vocabulary, n)) for n in generator.integers(10, 22, 4096)]
    with table.open("w") as file:
        file.write("videoid,name,page_dir\n")
        for number in range(rows):
            page = number // 2500 * 50
            text = f"{texts[number % 4096]} {number}"
            file.write(f"{10_000_000 + number},{text},{page:06d}_{page + 50:06d}\n")


def measure_memory(table: Path) -> dict[str, Any]:
    """Memory of this process and of two of its workers, which have visited many rows."""
    before, start = memory_of(os.getpid()), time.perf_counter()
    batches = train_batches(settings(BuildInfo(anno_dir=str(table), videos_dir="none")))
    seconds = time.perf_counter() - start
    main_memory = memory_of(os.getpid())
    children: list[dict[str, int]] = []
    for _ in range(2):
        receiving, sending = os.pipe()
        if not (child := os.fork()):
            visit(batches)
            os.write(sending, json.dumps(memory_of(os.getpid())).encode())
            os._exit(0)
        children.append(json.loads(os.read(receiving, 4096)))
        os.waitpid(child, 0)
    return {
        "seconds_to_read": round(seconds, 1),
        "before_mb": before,
        "main_process_mb": main_memory,
        "worker_mb": children,
    }


def visit(batches: TrainBatches) -> None:
    order, records = batches._orders[0], batches.sources[0].records
    for number in range(5000):
        for position in order.batch(number):
            records[order.item(position)]


def memory_of(process: int) -> dict[str, int]:
    """Memory in MB.

    `rss` counts whatever is mapped, also by others; `peak` was the largest; `pss` divides what is
    shared among the sharers; `anonymous` leaves out files, which the system drops when it needs to.
    """
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()[1:]
    sizes = {line.split(":")[0]: int(line.split()[1]) / 1e3 for line in lines}
    status = Path(f"/proc/{process}/status").read_text().splitlines()
    peak = next(int(line.split()[1]) / 1e3 for line in status if line.startswith("VmHWM"))
    found = {"rss": sizes["Rss"], "pss": sizes["Pss"], "anonymous": sizes["Anonymous"]}
    return {name: round(size) for name, size in {**found, "peak": peak}.items()}


if __name__ == "__main__":
    main()
