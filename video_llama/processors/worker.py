"""Decode files in a process of its own, so that no file can end the program.

FFmpeg, decord and Pillow are native code, and some damaged files end a process (segmentation
fault), hang it or take all memory. `decode_in_worker` runs a function of one file in a child
process with limits of time and memory. The death of that child is a `MediaError` that names the
file and the reason, and the next file gets a new child. Training does not need this: its data
workers are processes of their own, and a dead one is an error that names the file.

The child is an ordinary program (`python -c`), not a fork and not multiprocessing's spawn. So it
works with threads and CUDA in the parent, under pytest, from `python -c`, and from a script whose
main part has no guard. It lives until the parent ends.

Cost, measured on one core of an EPYC: a child takes 1.9 s of processor time to start, which
`start_decoding` hides behind the loading of the model, and 180 MB of memory of its own (300 MB
with the libraries that it shares). A file costs 0.3 ms more than in the program itself, and 2.5
ms for each megabyte that it sends back (eight frames of 224 x 224 pixels are 6 MB).
"""

from __future__ import annotations

import atexit
import contextlib
import io
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from traceback import format_exception
from typing import IO, Any, TypeVar

import torch

from video_llama.processors.limits import limit, limit_key
from video_llama.types import MediaError, VideoLlamaError

Result = TypeVar("Result")

_BYTES_PER_SECOND = 2e6
"""Large files may take longer: six hours of mp3 (200 MB) are decoded in about a minute."""

_START_SECONDS = 300.0
"""Longest time that a child may take to start, on a busy machine or a slow network disk."""

_BOOTSTRAP = (
    "import signal, sys, json; signal.signal(signal.SIGINT, signal.SIG_IGN); "
    "sys.path[:] = json.loads(sys.argv[2]); "
    "from video_llama.processors.worker import serve; serve(int(sys.argv[1]))"
)


class DecodingPool:
    """Child processes that decode files, at most `size` at once.

    Safe to use from several threads: each call takes an idle child, or waits for one.

    Args:
        size: most files decoded at once, by as many children.
        seconds: that a small file may take; None is the limit `worker_seconds` of `limits.LIMITS`.
        memory: bytes that decoding one file may take, on top of the libraries; None is
            `worker_megabytes`. Enforced on Linux only.
    """

    def __init__(
        self, size: int = 2, *, seconds: float | None = None, memory: int | None = None
    ) -> None:
        self._seconds = seconds or limit("worker_seconds")
        self._memory = memory or 1_000_000 * limit("worker_megabytes")
        self._owner = os.getpid()
        self._free = threading.BoundedSemaphore(size)
        self._lock = threading.Lock()
        self._idle: list[_Child] = []
        self._busy: set[_Child] = set()
        self._closed = False

    def start(self) -> None:
        """Start one child without waiting, so that the first file does not wait for imports."""
        with self._lock:
            if not self._idle and not self._busy and not self._closed:
                self._idle.append(_Child())

    def run(
        self,
        function: Callable[..., Result],
        path: str | Path,
        *args: Any,
        seconds: float | None = None,
        memory: int | None = None,
        **kwargs: Any,
    ) -> Result:
        """Return `function(path, *args, **kwargs)`, computed in a child process.

        Args:
            function: importable by name, or a picklable object such as a processor.
            path: the file that is decoded; errors name it.
            args: picklable, as is the result. Tensors are copied, not shared.
            seconds: limit of this call; None is the pool's, and more for a large file.
            memory: limit of this call, in bytes; None is the pool's.
            kwargs: likewise.

        Raises:
            MediaError: the file ended the child, or took too much time or memory; or `function`
                raised it, as everything else that it raises is raised here.
            VideoLlamaError: no child can be started.
        """
        seconds = seconds or self._seconds + _size(path) / _BYTES_PER_SECOND
        call = pickle.dumps((function, args, kwargs))
        job = (str(Path.cwd()), seconds, memory or self._memory, path, call)
        with self._free:
            child = self._take()
            is_usable = False
            try:
                outcome = child.run(pickle.dumps(job), seconds, path)
                is_usable = not outcome.is_spent
            finally:
                # Not after a Ctrl-C in this thread: the child may be in the middle of the file.
                self._give_back(child, is_usable)
        if outcome.error is not None:
            raise outcome.error from (RuntimeError(outcome.trace) if outcome.trace else None)
        result: Result = outcome.value
        return result

    def close(self) -> None:
        """End the children. A call that is in progress in another thread fails."""
        if os.getpid() != self._owner:  # a fork of the program does not own them
            return
        with self._lock:
            self._closed = True
            for child in self._idle:
                child.kill()
            for child in self._busy:  # its connection belongs to the thread that waits for it
                child.end()
            self._idle.clear()

    def _take(self) -> _Child:
        with self._lock:
            if self._closed or os.getpid() != self._owner:
                raise VideoLlamaError("the decoding processes have been closed")
            # One that died while it was idle (killed by the system or a user) is replaced.
            while self._idle:
                child = self._idle.pop()
                if child.is_alive:
                    break
                child.kill()
            else:
                child = _Child()
            self._busy.add(child)
            return child

    def _give_back(self, child: _Child, is_usable: bool) -> None:
        with self._lock:
            self._busy.discard(child)
            if is_usable and not self._closed:
                self._idle.append(child)
                return
        child.kill()


@dataclass
class _Outcome:
    """What a child sends back.

    Attributes:
        value: the result.
        error: the exception instead of it.
        trace: where it was raised, if it is a mistake of ours; exceptions lose that on their way.
        is_spent: whether the child keeps so much memory that a new one should take its place.
    """

    value: Any = None
    error: BaseException | None = None
    trace: str = ""
    is_spent: bool = False


class _Child:
    """A decoding process as its parent sees it."""

    def __init__(self) -> None:
        ours, theirs = socket.socketpair()
        # A file, because nobody reads a pipe and a talkative library would block on a full one.
        self._errors: IO[bytes] = tempfile.TemporaryFile()  # noqa: SIM115
        with theirs:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOOTSTRAP, str(theirs.fileno()), json.dumps(sys.path)],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=self._errors,
            )
        self._connection = Connection(ours.detach())
        self._is_ready = False

    @property
    def is_alive(self) -> bool:
        return self._process.poll() is None

    def run(self, job: bytes, seconds: float, path: str | Path) -> _Outcome:
        self._wait_until_ready()
        try:
            self._connection.send_bytes(job)
            if self._connection.poll(seconds):
                outcome: _Outcome = pickle.loads(self._connection.recv_bytes())
                return outcome
        except (EOFError, OSError):
            self.kill()
            raise MediaError(path, _reason_of_death(self._process.returncode)) from None
        self.kill()
        reason = f"reading it takes longer than {seconds:.3g} s"
        raise MediaError(path, f"{reason}; {limit_key('worker_seconds')} allows more")

    def _wait_until_ready(self) -> None:
        try:
            if not self._is_ready and self._connection.poll(_START_SECONDS):
                self._is_ready = self._connection.recv_bytes() == b"ready"
        except (EOFError, OSError):
            pass  # it ended: what it wrote says why
        if not self._is_ready:
            self._errors.seek(0)
            last = self._errors.read()[-2000:].decode(errors="replace").strip()
            self.kill()
            raise VideoLlamaError(f"the process that decodes files cannot start: {last}")

    def end(self) -> None:
        """End the process, whatever it does, and leave no zombie."""
        self._process.kill()
        self._process.wait()

    def kill(self) -> None:
        """End the process and close what belongs to it."""
        self.end()
        self._connection.close()
        self._errors.close()


def decode_in_worker(
    function: Callable[..., Result],
    path: str | Path,
    *args: Any,
    seconds: float | None = None,
    memory: int | None = None,
    **kwargs: Any,
) -> Result:
    """Return `function(path, *args, **kwargs)`, computed by the program's own `DecodingPool`.

    Args:
        function: as in `DecodingPool.run`, as is everything else.
        path: likewise.
        args: likewise.
        seconds: likewise.
        memory: likewise.
        kwargs: likewise.

    Raises:
        MediaError: as in `DecodingPool.run`.
        VideoLlamaError: likewise.
    """
    return _pool().run(function, path, *args, seconds=seconds, memory=memory, **kwargs)


def start_decoding() -> None:
    """Start the first child of the program's own pool, without waiting for it."""
    _pool().start()


_pools: dict[int, DecodingPool] = {}
"""The program's own pool, by process: a fork must not use the children of its parent."""

_pools_lock = threading.Lock()


def _pool() -> DecodingPool:
    with _pools_lock:
        if os.getpid() not in _pools:
            _pools.clear()
            _pools[os.getpid()] = pool = DecodingPool()
            atexit.register(pool.close)
        return _pools[os.getpid()]


def _size(path: str | Path) -> int:
    """Return the bytes of a file, 0 where there is none: the function will say what is wrong."""
    try:
        return Path(path).stat().st_size
    except (OSError, ValueError):
        return 0


def _reason_of_death(status: int) -> str:
    """Return why a file cannot be used that ended its decoder with this exit status."""
    if status == -signal.SIGKILL:
        return f"reading it takes too much memory ({limit_key('worker_megabytes')} sets it)"
    name = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return f"it ends the program that decodes it ({name}); it is damaged, or made to do harm"


def serve(descriptor: int) -> None:
    """Decode what the parent asks for; the main loop of the child."""
    # Imported here so that the first file does not wait for them.
    import video_llama.processors.audio
    import video_llama.processors.video  # noqa: F401

    connection = Connection(descriptor)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()
    _prefer_for_killing()
    base = _private_bytes()
    connection.send_bytes(b"ready")
    # A thread catches whatever the work raises. Only this process may end here, not the loop.
    with ThreadPoolExecutor(1) as thread:
        while True:
            try:
                job = _Job(*pickle.loads(connection.recv_bytes()))
            except (EOFError, OSError):
                return
            # If the parent is gone nobody else ends a decoder that hangs. The default action of
            # this signal needs no interpreter, which the decoder may hold.
            signal.alarm(int(job.seconds) + 10)
            _limit_memory(base + job.memory)
            work = thread.submit(_work, job)
            error = work.exception()
            _limit_memory(None)
            signal.alarm(0)
            if error is None:
                is_spent = _private_bytes() > base + job.memory // 4
                outcome = _Outcome(work.result(), is_spent=is_spent)
            else:
                outcome = _failure(job, error)
            connection.send_bytes(_pickled(outcome))


@dataclass
class _Job:
    """What a child is to do.

    Attributes:
        folder: relative paths start here.
        seconds: limit of time.
        memory: limit in bytes.
        path: of the file.
        call: function and its other arguments, pickled.
    """

    folder: str
    seconds: float
    memory: int
    path: str | Path
    call: bytes


def _work(job: _Job) -> Any:
    os.chdir(job.folder)
    function, args, kwargs = pickle.loads(job.call)
    return function(job.path, *args, **kwargs)


def _failure(job: _Job, error: BaseException) -> _Outcome:
    """Return what the parent is told of an error."""
    if _lacks_memory(error):
        reason = f"reading it takes more than {job.memory / 1e9:.3g} GB of memory"
        refusal = MediaError(job.path, f"{reason}; {limit_key('worker_megabytes')} allows more")
        return _Outcome(error=refusal, is_spent=True)
    trace = "" if isinstance(error, VideoLlamaError) else "".join(format_exception(error))
    return _Outcome(error=error, trace=trace)


def _lacks_memory(error: BaseException | None) -> bool:
    """Whether an error, or one that it was made from, says that there is no memory left."""
    while error is not None:
        text = str(error).lower()
        if isinstance(error, MemoryError) or "allocate memory" in text or "bad_alloc" in text:
            return True
        error = error.__cause__ or error.__context__
    return False


class _Pickler(pickle.Pickler):
    """Pickles pixels and spectrograms as arrays, which copies them once less than torch does."""

    def reducer_override(self, value: Any) -> Any:
        if type(value) is torch.Tensor and value.dtype in (torch.float32, torch.uint8):
            return torch.from_numpy, (value.contiguous().numpy(),)
        return NotImplemented


def _pickled(outcome: _Outcome) -> bytes:
    buffer = io.BytesIO()
    try:
        _Pickler(buffer, protocol=5).dump(outcome)
    except (pickle.PicklingError, AttributeError, TypeError, ValueError, RuntimeError) as error:
        what = outcome.error or outcome.value
        text = f"{type(what).__name__} cannot be sent by the decoding process: {error}; {what}"
        return pickle.dumps(_Outcome(error=RuntimeError(text)))
    return buffer.getvalue()


def _end_with_parent(parent: int) -> None:
    """End this process when its parent has ended, even if a fork keeps the socket open."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(0)


def _prefer_for_killing() -> None:
    """Let a system without memory end this process before its parent."""
    with contextlib.suppress(OSError):  # not Linux, or a sandbox without it
        Path("/proc/self/oom_score_adj").write_text("900")


def _private_bytes() -> int:
    """Return the private writable memory of this process, 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData")), 0)


def _limit_memory(limit: int | None) -> None:
    """Limit the private writable memory of this process; None takes the limit away."""
    if sys.platform == "linux":
        import resource

        # Not RLIMIT_AS: torch maps libraries and address space by gigabytes without using them.
        _, hard = resource.getrlimit(resource.RLIMIT_DATA)
        soft = hard if limit is None else limit
        if hard != resource.RLIM_INFINITY:
            soft = min(soft, hard)
        resource.setrlimit(resource.RLIMIT_DATA, (soft, hard))
