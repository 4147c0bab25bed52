"""What a run is built from, and where it stands while it trains."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import Tensor, nn

from video_llama.runners.distributed import ProcessGroup
from video_llama.runners.folder import BadItemList
from video_llama.runners.settings import RunSettings
from video_llama.runners.task import TextFromMedia
from video_llama.types import Batch


@dataclass(kw_only=True)
class RunComponents:
    """Model and data of a run, built from one configuration."""

    # The runner knows no configuration of models and data: what it needs of them is here.
    task: TextFromMedia
    """One step of training or evaluation; holds the model."""
    trainable: list[tuple[str, nn.Parameter]]
    """What trains, under the names of the branch file."""
    train_batches: Callable[[int, int], Iterable[Batch]]
    """The batches of this process for the steps from start to stop."""
    eval_batches: dict[str, Callable[[], Iterable[Batch]]]
    """The batches of this process for each split that is evaluated."""
    data_sets: list[str]
    """Names of the data sets."""
    write_branch: Callable[[Path, int], None]
    """Writes the branch file after a number of steps, and an adapter beside it."""
    read_adapter: Callable[[Path], dict[str, Tensor]]
    """Reads what of `trainable` a checkpoint's folder has beside the branch file."""
    identity: dict[str, Any]
    """What a resumed run must have in common with this one; see `check_unchanged`."""
    config: str
    """The resolved YAML."""


@dataclass(kw_only=True)
class RunState:
    """Where a run stands: what hooks read, and the fields that they set."""

    # Set once, when the run is built.
    settings: RunSettings
    """The run section."""
    processes: ProcessGroup
    """The processes that train together."""
    folder: Path
    """Folder of the run."""
    bad_items: BadItemList
    """The unreadable items that the run has met."""
    accelerator: Accelerator
    """Holds the trackers."""
    optimizer: Any
    """AdamW, as the accelerator has prepared it."""
    write_branch: Callable[[Path, int], None]
    """Of `RunComponents`."""
    evaluate: Callable[[str], dict[str, Any]]
    """Measures loss and answers on a split."""
    checkpoint_state: Callable[[], dict[str, Any]]
    """What a checkpoint holds beside the branch."""

    # Kept by the runner; the fields about an update are set before `after_update`.
    step: int = 0
    """Steps done."""
    previous_step: int = 0
    """Steps done at the update before the last one."""
    batch: Batch = field(init=False)
    """Batch of the last step."""
    loss: float = 0.0
    """Of the last update: its mean over the processes and the accumulated steps."""
    learning_rate: float = 0.0
    """Of the last step."""
    grad_norm: float = 0.0
    """Of the last update, before clipping."""
    healthy: bool = True
    """Whether the last update was made; False: loss or gradient was not finite."""
    sums: dict[str, float] = field(default_factory=dict)
    """What the hooks have measured since the last update, summed over the processes."""
    # Kept by hooks, for those that come after them in the list.
    figures: dict[str, float] = field(default_factory=dict)
    """Speed, memory and the like, for logs."""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    """Results since the last update."""
    validation_loss: float | None = None
    """Measured after the last update; None: it was not."""
    wait_seconds: float = 0.0
    """Waiting for data since the last update."""
    stopping: bool = False
    """End after this update."""
    checkpoint: Path | None = None
    """Folder of the last checkpoint saved."""

    @property
    def is_last(self) -> bool:
        """Whether all steps of the run are done."""
        return self.step == self.settings.num_steps

    def is_due(self, every: int) -> bool:
        """Whether a multiple of `every` steps was reached since the update before; 0: never.

        Steps come in groups of `accum_grad_iters`, so the multiple may lie within the group.
        """
        return every > 0 and self.step // every > self.previous_step // every
