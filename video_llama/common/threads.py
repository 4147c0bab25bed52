"""Choose how many threads OpenMP starts and how they wait; a program calls it before torch loads.

A file of its own, because it must be imported without torch and before it.
"""

from __future__ import annotations

import os


def set_thread_defaults() -> None:
    """Set `OMP_WAIT_POLICY` and, for several processes on a machine, `OMP_NUM_THREADS`.

    What the user has set stays. docs/speed.md has the measurement.
    """
    # OpenMP's threads spin while they wait for one another. Where another program has their core,
    # each of the many small operations of a model waits for a spinning thread to be scheduled.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    # Processes of torchrun already use the cores side by side. A single process keeps all cores:
    # with passive waiting they cost the tiny preset nothing, and a large model needs them.
    if int(os.environ.get("LOCAL_WORLD_SIZE", "1")) > 1:
        os.environ.setdefault("OMP_NUM_THREADS", "1")
