"""What a weight file holds: compared with its model by name and shape, and looked at by value."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import video_llama.common.compat

import torch
from torch import Tensor
from transformers import LlamaConfig

from video_llama.models.settings import ModelSettings
from video_llama.models.weights.names import GROUPS, LOGIT_SCALE, group_of
from video_llama.models.weights.save import Manifest, mismatch
from video_llama.types import WeightsError


@dataclass(frozen=True)
class WeightSource:
    """One weight file of the configuration and what it is for."""

    key: str
    """The configuration key that names it, such as "model.ckpt"."""
    path: Path
    prefix: str = ""
    """What its names lack in front of the original's ("visual_encoder." for EVA's file)."""
    groups: tuple[str, ...] = ()
    """The groups that it must hold; empty: any whole groups, at least one."""


@dataclass
class LoadReport:
    """What a file holds, compared with the model by name and shape."""

    source: WeightSource
    loaded: list[str] = field(default_factory=list)
    """Original names that it fills."""
    missing: list[str] = field(default_factory=list)
    """Names that it should hold and does not."""
    unexpected: list[str] = field(default_factory=list)
    """Its names that are unknown."""
    not_needed: Counter[str] = field(default_factory=Counter)
    """How many of its names are known but have no place here, by reason."""
    wrong_shape: list[str] = field(default_factory=list)
    """Messages about sizes that differ, and types that cannot be weights."""
    manifest: Manifest | None = None
    """What the file says about itself, if it is one of ours."""

    @property
    def groups(self) -> set[str | None]:
        """The groups of weights that it fills."""
        # The original's branch files carry that one buffer of ImageBind, not its parameters.
        return {group_of(name) for name in self.loaded if name != LOGIT_SCALE}

    def __str__(self) -> str:
        counts = [f"{len(self.loaded)} tensors loaded"]
        counts += [f"{count} of {reason} not needed" for reason, count in self.not_needed.items()]
        return f"{self.source.key} {self.source.path}: {', '.join(counts)}"

    def check(self, settings: ModelSettings, llm: LlamaConfig) -> None:
        """Raise the one error that says what does not fit, if anything."""
        # The cause that explains most comes first: a file of another kind has many wrong shapes,
        # and a wrong shape is also a missing name.
        where = f"{self.source.key}: {self.source.path}"
        if self.manifest and (problem := mismatch(self.manifest, settings, llm)):
            raise WeightsError(f"{where}: {problem}")
        if self.wrong_shape:
            more = len(self.wrong_shape) - 1
            rest = f" ({more} more tensors differ)" if more else ""
            raise WeightsError(f"{where}: {self.wrong_shape[0]}{rest}")
        if not self.loaded:
            found = ", ".join(self.unexpected[:3]) or ", ".join(self.not_needed) or "nothing"
            wanted = ", ".join(GROUPS[group][0] + "*" for group in self.source.groups)
            raise WeightsError(
                f"{where}: no tensor of this file has a place in the model; it holds {found}"
                + (f", expected {wanted}" if wanted else "")
            )
        if self.unexpected:
            raise WeightsError(
                f"{where}: {len(self.unexpected)} unknown tensors, first {self.unexpected[0]}; "
                "is this the file that the key is for?"
            )
        if self.missing:
            raise WeightsError(
                f"{where}: {len(self.missing)} tensors are missing, first {self.missing[0]}; the "
                "file is incomplete, or the model sizes of the configuration are larger than its"
            )


_TRAINED = ("video_branch", "video_proj", "audio_branch")
"""Groups that come out of trainings."""

SAMPLE = 1 << 16
"""Values at each end of a frozen tensor that stand for it: to read all takes seconds."""


class ValueCheck:
    """Finds files of the right shapes whose values cannot be weights; `where` begins its errors.

    A value that is not finite is an error, and so is a part whose matrices hold nothing but zeros:
    a model would answer from either without a word, as if it had seen nothing. Trained groups, and
    tensors on a GPU, are read whole; of others `SAMPLE` values at each end are read.
    """

    def __init__(self, where: str) -> None:
        self._where = where
        self._is_zero: dict[tuple[str, bool], bool] = {}

    def add(self, name: str, tensor: Tensor) -> None:
        """Refuse a floating-point tensor, by its original name, that is not finite throughout."""
        if not tensor.numel():
            return
        group, values = group_of(name) or name, tensor.detach()
        # A training that diverges may spoil few values; a frozen file is damaged as a whole.
        if group not in _TRAINED and not values.is_cuda:
            flat = values.reshape(-1)
            values = torch.cat([flat[:SAMPLE], flat[-SAMPLE:]])
        # One pass and no copy; a NaN among the values is both the least and the largest.
        low, high = map(float, torch.aminmax(values))
        if not (math.isfinite(low) and math.isfinite(high)):
            advice = "the file is damaged: download it again"
            if group in _TRAINED:
                advice = "its training has diverged: take an earlier checkpoint"
            raise WeightsError(f"{self._where}: {name} holds values that are not finite; {advice}")
        key = group, tensor.ndim > 1
        self._is_zero[key] = self._is_zero.get(key, True) and low == high == 0

    def finish(self) -> None:
        """Refuse parts of which all matrices were zero (all vectors, where there are only such)."""
        for (group, is_matrix), is_zero in self._is_zero.items():
            if is_zero and (is_matrix or (group, True) not in self._is_zero):
                raise WeightsError(
                    f"{self._where}: all weights of {group} are zero; the file was not written or "
                    "copied completely: download or save it again"
                )
