"""A file that ends, hangs or bloats its decoder is one error, and the next file is read."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests import media
from tests.reference import ROOT
from video_llama.processors import worker
from video_llama.processors.media import NoSoundError, probe
from video_llama.processors.settings import AudioSettings, ImageEvalSettings, VideoEvalSettings
from video_llama.processors.worker import DecodingPool, decode_in_worker
from video_llama.types import MediaError, VideoLlamaError


def slow(*values: Any) -> Any:
    """Values of a test that starts one more child, which takes seconds."""
    return pytest.param(*values, marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodingPool]:
    pool = DecodingPool(size=2)
    yield pool
    pool.close()


def process_id(path: Path) -> int:
    return os.getpid()


def die(path: Path, number: int) -> None:
    os.kill(os.getpid(), number)


def leave(path: Path) -> None:
    os._exit(3)


def hang(path: Path) -> None:
    time.sleep(60)


def fill(path: Path, size: int) -> int:
    return len(np.ones(size, np.uint8))


def fill_torch(path: Path, size: int) -> int:
    return len(torch.ones(size, dtype=torch.uint8))


def keep(path: Path, size: int) -> None:
    globals()["kept"] = np.ones(size, np.uint8)


def fail(path: Path, error: Exception) -> None:
    raise error


def make_lambda(path: Path) -> object:
    return lambda: 0


def tensors(path: Path) -> dict[str, Any]:
    big = torch.arange(300_000).float()
    return {"a": big, "view": big[::3], "bf16": torch.ones(2, dtype=torch.bfloat16), "n": [1]}


def folder(path: Path) -> str:
    return str(Path.cwd())


def state_of(pid: int) -> str:
    """`gone`, or the letter of Linux for its state, Z for a zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def wait_until(condition: Callable[[], bool], seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        (VideoEvalSettings(image_size=32), "a.mp4"),
        (AudioSettings(), "a.mp4"),
        (ImageEvalSettings(image_size=32), "a.png"),
    ],
)
def test_results_equal_those_of_the_same_process(
    pool: DecodingPool, tmp_path: Path, settings: Any, name: str
) -> None:
    path = tmp_path / name
    if name == "a.png":
        media.write_picture(path)
    else:
        media.write_video(path, sound=media.tone(2))
    here, there = settings.build()(path), pool.run(settings.build(), path)
    if isinstance(here, torch.Tensor):
        here, there = {"values": here}, {"values": there}
    else:
        here, there = vars(here), vars(there)
    for key, value in here.items():
        same = torch.equal(value, there[key]) if isinstance(value, torch.Tensor) else True
        assert same, key
        assert isinstance(value, torch.Tensor) or value == there[key], key
    assert pool.run(probe, path) == probe(path)


def test_tensors_arrive_as_they_are(pool: DecodingPool) -> None:
    here, there = tensors(Path()), pool.run(tensors, "a")
    for key in ("a", "view", "bf16"):
        assert torch.equal(here[key], there[key]), key
        assert here[key].dtype == there[key].dtype
    there["a"] += 1  # writable
    assert there["n"] == [1]


@pytest.mark.parametrize(
    ("function", "arguments", "reason"),
    [
        (die, (signal.SIGSEGV,), "ends the program that decodes it .SIGSEGV."),
        slow(die, (signal.SIGKILL,), "too much memory"),
        slow(leave, (), "ends the program that decodes it .exit status 3."),
    ],
)
def test_the_death_of_the_decoder_is_an_error_that_names_the_file(
    pool: DecodingPool, function: Any, arguments: tuple[Any, ...], reason: str
) -> None:
    before = pool.run(process_id, "a.mp4")
    with pytest.raises(MediaError, match=reason) as error:
        pool.run(function, "clips/a.mp4", *arguments)
    assert str(error.value).startswith("clips/a.mp4: ")
    assert wait_until(lambda: state_of(before) in ("gone", "S", "R"))
    assert pool.run(process_id, "a.mp4") != os.getpid()


def test_a_file_that_takes_too_long_is_given_up(tmp_path: Path) -> None:
    pool = DecodingPool(size=1, seconds=0.5)
    first = pool.run(process_id, "a.mp4", seconds=60)
    start = time.monotonic()
    with pytest.raises(
        MediaError, match=r"longer than 0\.5 s; VIDEO_LLAMA_MAX_WORKER_SECONDS allows"
    ):
        pool.run(hang, "a.mp4")
    assert time.monotonic() - start < 20
    assert state_of(first) == "gone"
    # A large file may take longer: without that, no child would answer within 0.5 s.
    (tmp_path / "large.mp4").touch()
    os.truncate(tmp_path / "large.mp4", 60_000_000)
    assert pool.run(process_id, tmp_path / "large.mp4") != first
    pool.close()


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not enforce the limit")
@pytest.mark.parametrize("function", [fill, slow(fill_torch)])
def test_a_file_that_takes_too_much_memory_is_refused(pool: DecodingPool, function: Any) -> None:
    reason = r"more than 0\.3 GB of memory; VIDEO_LLAMA_MAX_WORKER_MEGABYTES allows more"
    with pytest.raises(MediaError, match=reason):
        pool.run(function, "a.mp4", 800_000_000, memory=300_000_000)
    assert pool.run(function, "a.mp4", 800_000_000, memory=1_500_000_000) == 800_000_000


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not say what is in use")
def test_a_child_that_keeps_memory_is_replaced() -> None:
    pool = DecodingPool(size=1, memory=400_000_000)
    first = pool.run(process_id, "a")
    assert pool.run(process_id, "a") == first
    pool.run(keep, "a", 200_000_000)
    assert pool.run(process_id, "a") != first
    pool.close()


def test_errors_of_the_function_arrive_as_they_are(pool: DecodingPool, tmp_path: Path) -> None:
    silent = media.write_video(tmp_path / "a.mp4")
    with pytest.raises(NoSoundError, match="no sound track") as error:
        pool.run(AudioSettings().build(), silent)
    assert error.value.path == silent
    with pytest.raises(KeyError, match="a mistake") as mistake:
        pool.run(fail, "a", KeyError("a mistake"))
    assert "in fail" in str(mistake.value.__cause__)
    with pytest.raises(RuntimeError, match="cannot be sent by the decoding process"):
        pool.run(make_lambda, "a")


def test_relative_paths_follow_the_program(
    pool: DecodingPool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert pool.run(folder, "a") == str(tmp_path)


@pytest.mark.slow
def test_several_threads_at_once_and_some_files_deadly(pool: DecodingPool, tmp_path: Path) -> None:
    path = media.write_picture(tmp_path / "a.png")

    def one(index: int) -> str:
        try:
            if index % 3 == 0:
                pool.run(die, f"{index}", signal.SIGSEGV)
            return pool.run(probe, path).kind
        except MediaError as error:
            return str(error)[:2]

    with ThreadPoolExecutor(6) as threads:
        results = list(threads.map(one, range(9)))
    assert [r == "image" for r in results] == [i % 3 != 0 for i in range(9)]
    assert [r for r in results if r != "image"] == ["0:", "3:", "6:"]


def test_closing_ends_the_children_and_calls_in_progress() -> None:
    pool = DecodingPool(size=2)
    children = {pool.run(process_id, "a")}
    errors: list[Exception] = []

    def call() -> None:
        try:
            pool.run(hang, "a", seconds=60)
        except VideoLlamaError as error:
            errors.append(error)

    thread = threading.Thread(target=call)
    thread.start()
    assert wait_until(lambda: bool(pool._busy))
    time.sleep(0.2)
    pool.close()
    thread.join(30)
    assert len(errors) == 1
    assert [state_of(child) for child in children] == ["gone"]
    with pytest.raises(VideoLlamaError, match="closed"):
        pool.run(process_id, "a")


SCRIPT = """
import os, sys
from video_llama.processors.media import probe
from video_llama.processors.worker import _pool, decode_in_worker
print(decode_in_worker(probe, sys.argv[1]).kind)
print(_pool()._idle[0]._process.pid, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("way", ["-c", "file", "fork", "killed"])
def test_programs_of_every_kind_use_it_and_leave_nothing(tmp_path: Path, way: str) -> None:
    path = media.write_picture(tmp_path / "a.png")
    script = tmp_path / "script.py"  # no guard: spawn would run it again in the child
    code = SCRIPT
    if way == "fork":
        code += "pid = os.fork()\nprint(decode_in_worker(probe, sys.argv[1]).kind)\n"
        code += "pid and os.waitpid(pid, 0)\n"
    if way == "killed":
        code += "os.kill(os.getpid(), 9)\n"
    script.write_text(code)
    command = [sys.executable, "-c", code] if way == "-c" else [sys.executable, str(script)]
    result = subprocess.run(
        [*command, str(path)], cwd=ROOT, capture_output=True, text=True, timeout=100,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    kind, child, *others = result.stdout.split()
    assert (kind, others) == ("image", ["image", "image"] if way == "fork" else [])
    assert result.stderr == ""
    assert wait_until(lambda: state_of(int(child)) == "gone")


def test_the_programs_own_pool_is_made_once_and_started_early(tmp_path: Path) -> None:
    start = time.monotonic()
    worker.start_decoding()
    assert time.monotonic() - start < 5  # the imports are not waited for
    # Other tests of this process may have left children in the pool: none is added.
    pool, children = worker._pool(), set(worker._pool()._idle)
    assert children
    path = media.write_picture(tmp_path / "a.png")
    assert decode_in_worker(probe, path).kind == "image"
    assert worker._pool() is pool
    assert set(pool._idle) == children


def test_the_environment_sets_the_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEO_LLAMA_MAX_WORKER_SECONDS", "30")
    monkeypatch.setenv("VIDEO_LLAMA_MAX_WORKER_MEGABYTES", "500")
    pool = DecodingPool()
    assert (pool._seconds, pool._memory) == (30, 500_000_000)


def test_a_child_that_cannot_start_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(worker, "_BOOTSTRAP", "raise SystemExit('no libraries here')")
    pool = DecodingPool(size=1)
    with pytest.raises(VideoLlamaError, match="cannot start: no libraries here"):
        pool.run(process_id, "a")
