"""Every key of the `run` section, with its default and its meaning. Torch-free.

A step is one batch forward and backward in every process; an epoch is `iters_per_epoch` steps. An
update of the weights follows every `accum_grad_iters` steps: what is due in between happens then.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Literal

from video_llama.common.checks import (
    MAX_BATCH,
    MAX_SEED,
    MAX_STEPS,
    MAX_TOKENS,
    MAX_WORKERS,
    at_least,
    at_most,
)
from video_llama.types import ConfigError

COMPILED_MODULES = ("vision_encoder", "qformers", "language_model")
DEVICES = ("auto", "cuda", "mps", "cpu", "meta")


@dataclass(kw_only=True)
class RunSettings:
    """The `run` section: task, schedule, data loading, checkpoints, limits and device."""

    runner: Literal["runner_base"] = "runner_base"
    """Registered name of the training loop."""
    task: Literal["video_text_pretrain", "image_text_pretrain"] = "video_text_pretrain"
    """Registered name of what one step does."""
    evaluate: bool = False
    """Only evaluate, do not train."""

    # Rates are functions of the step alone, so that a resumed run goes on with the same ones.
    lr_sched: Literal["linear_warmup_cosine_lr", "linear_warmup_step_lr"] = (
        "linear_warmup_cosine_lr"
    )
    """Registered name of the learning-rate schedule."""
    init_lr: float = 1e-4
    """Learning rate after warm-up."""
    lora_lr: float | None = None
    """Learning rate of model.lora_r's adapter after warm-up; null: init_lr. It follows the same
    schedule, scaled."""
    min_lr: float = 0.0
    """Learning rate that the schedule ends at."""
    warmup_lr: float = -1.0
    """Learning rate that warm-up starts from; negative: init_lr."""
    warmup_steps: int = 0
    """Warm-up, steps counted over the whole run."""
    lr_decay_rate: float = 0.9
    """Factor per epoch of linear_warmup_step_lr."""
    weight_decay: float = 0.05
    """AdamW's weight decay of matrices and tables."""
    beta2: float = 0.999
    """AdamW's second beta."""
    grad_clip: float | None = None
    """Largest norm of the gradient; null: no clipping."""
    accum_grad_iters: int = 1
    """Steps whose gradients are averaged for one update."""
    amp: bool = False
    """Mixed precision: bf16 where the device has it, fp16 with a gradient scaler elsewhere."""

    # An epoch is a number of steps, not a pass over the data: data sets are mixed by their ratios.
    max_epoch: int = 1
    """Length of the run, epochs."""
    iters_per_epoch: int = 10000
    """Length of an epoch, steps."""
    batch_size_train: int = 4
    """Items per step and process."""
    batch_size_eval: int = 4
    """Items per evaluation step and process."""
    train_splits: list[str] = field(default_factory=lambda: ["train"])
    """Splits to train on."""
    valid_splits: list[str] = field(default_factory=list)
    """Splits to validate on after every epoch."""
    test_splits: list[str] = field(default_factory=list)
    """Splits to test on after the run."""

    # What is computed faster; the losses stay the same but for rounding.
    feature_cache: str | None = None
    """Folder that keeps what the frozen encoders make of each item, so that they see it once (for
    each of num_views); null: they run in every step."""
    num_views: int = 1
    """Ways in which an item is cropped, and its frames chosen, with feature_cache; epochs take them
    in turn. Items that nothing random is done to have one."""

    packing: bool = False
    """Compute on the texts of a batch without padding, as one row in which none sees another; the
    loss is the same."""
    compile: list[str] = field(default_factory=list)
    """Parts whose blocks go through torch.compile: vision_encoder, qformers, language_model."""

    # How much may go wrong: one bad file must not end a run of days, many are a mistake.
    num_workers: int = 4
    """Loading processes per data set; 0: load in the training process."""
    data_timeout: float = 600.0
    """Longest wait for one batch of a loading process, seconds; 0: for ever."""
    max_bad_fraction: float = 0.05
    """Largest part of a data set that may be unreadable, 0 to 1; more, among at least 100 items,
    ends the run."""
    max_nonfinite_steps: int = 10
    """Updates in a row whose loss may be infinite or NaN (they are skipped); more ends the run."""

    # Generated answers take far longer than losses, so an evaluation has some only.
    max_answers: int = 100
    """Answers generated for each split of an evaluation, per process; 0: only the loss."""
    answer_max_new_tokens: int = 64
    """Longest generated answer of an evaluation, tokens."""

    # A checkpoint holds what trains and its optimiser, a few hundred megabytes.
    output_dir: str = "output"
    """Folder that gets one folder per run, with its logs and checkpoints."""
    resume_ckpt_path: str | None = None
    """What to go on from: latest (the newest under output_dir), a run's folder or a checkpoint."""
    save_every: int = 0
    """Steps between checkpoints inside an epoch; 0: only at the end of every epoch."""
    keep_last: int = 3
    """Newest checkpoints to keep; 0: all."""
    keep_best: bool = True
    """Keep the checkpoint with the lowest validation loss too."""
    log_every: int = 50
    """Steps between lines of the log."""

    device: str = "auto"
    """auto (cuda, else mps, else cpu), cuda, cuda:N, mps, cpu, or meta (shapes only)."""
    fsdp: bool = False
    """Shard the frozen LLM over the processes, for one that does not fit on a device."""
    seed: int = 42
    """Start of every random number; step and rank are mixed in."""

    def __post_init__(self) -> None:
        # Absurd sizes would fail later, as an overflow or for lack of memory far from the setting.
        at_least(
            self, 0, "init_lr", "lora_lr", "min_lr", "lr_decay_rate", "weight_decay", "grad_clip"
        )
        at_least(self, 0, "warmup_steps", "num_workers", "data_timeout", "max_nonfinite_steps")
        at_least(self, 0, "save_every", "keep_last", "seed", "beta2", "max_bad_fraction")
        at_least(self, 0, "max_answers")
        at_least(self, 1, "accum_grad_iters", "max_epoch", "iters_per_epoch", "log_every")
        at_least(self, 1, "num_views")
        at_least(self, 1, "batch_size_train", "batch_size_eval", "answer_max_new_tokens")
        at_most(self, MAX_BATCH, "batch_size_train", "batch_size_eval", "accum_grad_iters")
        at_most(self, MAX_STEPS, "max_epoch", "iters_per_epoch", "warmup_steps", "data_timeout")
        at_most(self, MAX_TOKENS, "answer_max_new_tokens")
        at_most(self, MAX_WORKERS, "num_workers")
        at_most(self, MAX_SEED, "seed")
        at_most(self, MAX_BATCH, "num_views")
        self._check_ranges()
        # The original's way to say "no warm-up rate of its own".
        if self.warmup_lr < 0:
            self.warmup_lr = self.init_lr
        at_least(self, 0, "warmup_lr")  # for what is not finite

    @property
    def num_steps(self) -> int:
        """Length of the run, steps."""
        return self.max_epoch * self.iters_per_epoch

    def _check_ranges(self) -> None:
        # The ranges that involve two settings, or a list of names.
        unknown = [part for part in self.compile if part not in COMPILED_MODULES]
        if unknown:
            valid = ", ".join(COMPILED_MODULES)
            raise ConfigError(f"compile: {unknown[0]!r} given, some of {valid} expected")
        if self.packing and "language_model" in self.compile:
            raise ConfigError(
                "packing: true given together with compile of language_model, which would compile "
                "anew for the lengths of every batch: leave one of them"
            )
        if self.beta2 >= 1:
            raise ConfigError(f"beta2: {self.beta2} given, below 1 expected")
        if self.max_bad_fraction > 1:
            raise ConfigError(f"max_bad_fraction: {self.max_bad_fraction} given, 0 to 1 expected")
        if self.min_lr > self.init_lr:
            raise ConfigError(
                f"min_lr: {self.min_lr} given, at most init_lr ({self.init_lr}) expected"
            )
        if self.device not in DEVICES and not re.fullmatch(r"cuda:\d+", self.device):
            valid = ", ".join((*DEVICES, "cuda:N"))
            raise ConfigError(f"device: {self.device!r} given, one of {valid} expected")
