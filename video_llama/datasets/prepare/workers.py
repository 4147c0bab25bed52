"""Work on a data set with several processes."""

from __future__ import annotations

import multiprocessing
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

from video_llama.types import VideoLlamaError

Job = TypeVar("Job")
Result = TypeVar("Result")

Progress = Callable[[int, int], None]
"""Called with what is done by now and what there is to do."""


class WorkerDiedError(VideoLlamaError):
    """A process was killed, or crashed in a codec."""


def parallel(
    work: Callable[[Job], Result], jobs: Iterable[Job], *, num_workers: int
) -> Iterator[Result]:
    """Yield the results of jobs, as they come.

    On Linux what `work` refers to is shared with the processes, not copied. With 0 workers the jobs
    are done in this process.

    Raises:
        WorkerDiedError: a process ended unexpectedly.
    """
    if num_workers < 1:
        yield from map(work, jobs)
        return
    # Forked processes share the annotation; the others are given it once, when they start.
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else None)
    executor = ProcessPoolExecutor(num_workers, context, _remember, (work,))
    try:
        for future in as_completed([executor.submit(_do, job) for job in jobs]):
            yield future.result()
    except BrokenProcessPool as error:
        raise WorkerDiedError(
            "a process died: the machine ran out of memory, or a codec crashed on a file; use "
            "fewer workers, or 0 to see which file it is"
        ) from error
    finally:
        # After an error the jobs that have not begun are not worth waiting for.
        executor.shutdown(cancel_futures=True)


_work: Callable[[Any], Any] | None = None
"""What this process works on; given once, because a data set is large."""


def _remember(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work


def _do(job: Any) -> Any:
    assert _work is not None
    return _work(job)
