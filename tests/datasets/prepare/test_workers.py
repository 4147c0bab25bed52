"""Work that is shared out among processes."""

from __future__ import annotations

import os
import signal

import pytest

from video_llama.datasets.prepare.workers import WorkerDiedError, parallel
from video_llama.types import MediaError


def work(job: int) -> int:
    if job == 7:
        os.kill(os.getpid(), signal.SIGKILL)
    if job == 5:
        raise MediaError("a.mp4", "broken")
    return job * job


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_every_job_is_done_once(workers: int) -> None:
    assert sorted(parallel(work, range(5), num_workers=workers)) == [0, 1, 4, 9, 16]
    with pytest.raises(MediaError, match=r"a\.mp4: broken"):
        list(parallel(work, [1, 5], num_workers=workers))


def test_a_process_that_dies_is_an_error() -> None:
    with pytest.raises(WorkerDiedError, match="out of memory, or a codec crashed"):
        list(parallel(work, [1, 7, 2], num_workers=2))
