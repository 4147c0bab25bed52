"""Write a world to a folder: clips, pictures, sounds and their annotations, by many processes."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict
from itertools import chain
from multiprocessing import get_context
from pathlib import Path

from video_llama.synthetic import formats
from video_llama.synthetic.media import Source, World, WorldItem, write_item
from video_llama.synthetic.splits import SOUND_RANGES, SPLITS, Split, triples
from video_llama.types import ConfigError

Progress = Callable[[int, int], None]

SHARES: dict[Split, float] = {"train": 1.0, "valid": 0.25, "test": 0.5, "test_pairs": 0.25}
"""Clips of a split for each clip of training."""

SOURCE_SHARES: dict[Source, float] = {
    "clips": 1.0,
    "cc_sbu_align": 1.0,
    "llava_instruct": 1.0,
    "audio_caption": 0.5,
}
"""Items of a data set for each clip of the same split."""

CLIPS_ONLY: tuple[Split, ...] = ("test", "test_pairs")
"""Splits that have clips with questions to score, and nothing to train on."""

_CHUNK = 8


def plan(
    num_clips: int, world: World, *, splits: Sequence[Split] = SPLITS
) -> dict[tuple[Split, Source], list[WorldItem]]:
    """List every file to write.

    Args:
        splits: which splits; those that are left out change nothing in the others.
    """
    items: dict[tuple[Split, Source], list[WorldItem]] = {}
    for split in splits:
        for source, share in SOURCE_SHARES.items():
            if source == "clips" or split not in CLIPS_ONLY:
                count = max(1, round(num_clips * SHARES[split] * share))
                items[split, source] = [
                    WorldItem(world=world, source=source, split=split, number=number)
                    for number in range(count)
                ]
    return items


def write_world(
    out: Path,
    *,
    num_clips: int,
    world: World,
    splits: Sequence[Split] = SPLITS,
    num_workers: int = 1,
    progress: Progress | None = None,
) -> int:
    """Write the splits of a world; the folder appears when everything is in it.

    The bytes depend on the arguments and on the installed packages, not on the number of processes.

    Args:
        out: folder to make; it does not exist, or is empty.
        num_clips: clips of the training split; `SHARES` says how many the others have.
        progress: called with the number of files written and to write.

    Returns:
        The number of media files.

    Raises:
        ConfigError: the folder exists, or a number is out of range.
    """
    check(out, num_clips, world)
    items = plan(num_clips, world, splits=splits)
    every = list(chain.from_iterable(items.values()))
    # The folder appears under its name when all is written: half a world is never taken for one.
    with _appearing(out) as folder:
        for parent in sorted({(folder / item.path).parent for item in every}):
            parent.mkdir(parents=True, exist_ok=True)
        for done in _write_all(every, folder, num_workers):
            if progress is not None:
                progress(done, len(every))
        for name, text in annotation_files(items).items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, "utf-8")
        (folder / "world.json").write_text(_description(items, world), "utf-8")
    return len(every)


def check(out: Path, num_clips: int, world: World) -> None:
    """Refuse what cannot be written.

    Raises:
        ConfigError: as `write_world`.
    """
    if out.exists() and not (out.is_dir() and not any(out.iterdir())):
        raise ConfigError(f"{out}: exists already; name a new folder, or remove it first")
    if num_clips < 1:
        raise ConfigError(f"num_clips: {num_clips} given, at least 1 expected")
    if world.seed < 0:
        raise ConfigError(f"seed: {world.seed} given, at least 0 expected")
    if world.size < 32 or world.size % 2:
        raise ConfigError(f"size: {world.size} given, an even number of at least 32 expected")
    if not 2 <= world.fps <= 120:
        raise ConfigError(f"fps: {world.fps:g} given, 2 to 120 expected")


def annotation_files(items: dict[tuple[Split, Source], list[WorldItem]]) -> dict[str, str]:
    """Return names of annotation files, relative to the folder of all data, and their content.

    Args:
        items: as `plan` returns them.
    """
    files = {}
    for (split, source), found in items.items():
        if source == "clips":
            files[f"{split}/webvid/clips.csv"] = formats.webvid_table(found)
            files[f"{split}/webvid_instruct.json"] = formats.webvid_instruct(found)
            files[f"{split}/webvid_instruct_zh.json"] = formats.webvid_instruct(found, chinese=True)
            if split != "train":
                files[f"{split}/questions.json"] = formats.evaluation(found)
        elif source == "cc_sbu_align":
            files[f"{split}/cc_sbu_align/filter_cap.json"] = formats.cc_sbu_align(found)
        elif source == "llava_instruct":
            name = f"{split}/llava_instruct/llava_instruct.json"
            files[name] = formats.llava_instruct(found)
        else:
            name = f"{split}/audio_caption/audio_caption.json"
            files[name] = formats.audio_caption(found)
    return files


def _write_all(items: Sequence[WorldItem], folder: Path, num_workers: int) -> Iterator[int]:
    """Write the files and yield how many are done, now and then."""
    chunks = [items[start : start + _CHUNK] for start in range(0, len(items), _CHUNK)]
    done = 0
    if num_workers <= 1:
        for chunk in chunks:
            done += _write_chunk(chunk, folder)
            yield done
        return
    # A fresh process each: the caller may have threads, which do not survive a fork.
    with ProcessPoolExecutor(num_workers, mp_context=get_context("spawn")) as pool:
        try:
            futures = [pool.submit(_write_chunk, chunk, folder) for chunk in chunks]
            for future in as_completed(futures):
                done += future.result()
                yield done
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _write_chunk(items: Sequence[WorldItem], folder: Path) -> int:
    for item in items:
        write_item(item, folder)
    return len(items)


@contextlib.contextmanager
def _appearing(out: Path) -> Iterator[Path]:
    """Give a folder that becomes `out` when the block ends well, and is removed otherwise."""
    folder = out.with_name(f".{out.name}.{os.getpid()}.tmp")
    folder.mkdir(parents=True)
    try:
        yield folder
        folder.replace(out)
    except BaseException:
        shutil.rmtree(folder)
        raise


def _description(items: dict[tuple[Split, Source], list[WorldItem]], world: World) -> str:
    """Describe what was written, for those who find the folder."""
    content = {
        "world": asdict(world),
        "items": {f"{split}/{source}": len(found) for (split, source), found in items.items()},
        "triples": {split: triples(split) for split in SPLITS},
        "sounds": {split: asdict(SOUND_RANGES[split]) for split in SPLITS},
    }
    return json.dumps(content, indent=1) + "\n"
