"""What tests of hooks share: a state of a run in one process."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from video_llama.runners.distributed import ProcessGroup
from video_llama.runners.folder import BadItemList
from video_llama.runners.settings import RunSettings
from video_llama.runners.state import RunState

FIGURES = {"eta_s": 3.0, "samples_per_s": 8.0, "data_wait": 0.25, "memory_gb": 1.5}


def fake_run(folder: Path, *, num_steps: int = 8, **values: Any) -> RunState:
    """A run of this process alone, at its first step, without model, data and optimiser."""
    processes: Any = ProcessGroup("cpu")
    absent: Any = None
    run = RunState(
        settings=RunSettings(log_every=2, iters_per_epoch=num_steps),
        processes=processes,
        folder=folder,
        bad_items=BadItemList(folder, processes),
        **dict.fromkeys(("accelerator", "optimizer", "write_branch"), absent),
        **dict.fromkeys(("evaluate", "checkpoint_state"), absent),
        **{"loss": 1 / 3, "grad_norm": 0.1, "learning_rate": 1e-4, "figures": dict(FIGURES)},
    )
    for name, value in values.items():
        setattr(run, name, value)
    return run


def updates(run: RunState, steps: int) -> Iterator[int]:
    for step in range(run.step + 1, steps + 1):
        run.previous_step, run.step = run.step, step
        yield step
