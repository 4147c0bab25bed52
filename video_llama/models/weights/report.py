"""What a weight file holds, compared with the model that it is loaded into."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import video_llama.common.compat

from transformers import LlamaConfig

from video_llama.models.settings import ModelSettings
from video_llama.models.weights.names import GROUPS, LOGIT_SCALE, group_of
from video_llama.models.weights.save import Manifest, misfit
from video_llama.types import WeightsError


@dataclass(frozen=True)
class WeightSource:
    """One weight file of the configuration and what it is for.

    Attributes:
        key: the configuration key that names it, such as "model.ckpt".
        path: the file.
        prefix: what its names lack in front of the original's ("visual_encoder." for EVA's file).
        groups: the groups that it must hold; empty: any whole groups, at least one.
    """

    key: str
    path: Path
    prefix: str = ""
    groups: tuple[str, ...] = ()


@dataclass
class LoadReport:
    """What a file holds, compared with the model.

    Attributes:
        source: the file.
        loaded: original names that it fills.
        missing: names that it should hold and does not.
        unexpected: its names that nothing here knows.
        not_needed: how many of its names are known but have no place here, by reason.
        wrong_shape: messages about sizes that differ, and types that are no weights.
        manifest: what the file says about itself, if it is one of ours.
    """

    source: WeightSource
    loaded: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    not_needed: Counter[str] = field(default_factory=Counter)
    wrong_shape: list[str] = field(default_factory=list)
    manifest: Manifest | None = None

    @property
    def groups(self) -> set[str | None]:
        """The groups of weights that it fills."""
        # The original's branch files carry that one buffer of ImageBind, not its parameters.
        return {group_of(name) for name in self.loaded if name != LOGIT_SCALE}

    def __str__(self) -> str:
        parts = [f"{len(self.loaded)} tensors loaded"]
        parts += [f"{count} of {reason} not needed" for reason, count in self.not_needed.items()]
        return f"{self.source.key} {self.source.path}: {', '.join(parts)}"

    def check(self, settings: ModelSettings, llm: LlamaConfig) -> None:
        """Raise the one error that says what does not fit, if anything.

        Args:
            settings: of the model that the file was matched with.
            llm: configuration of its language model.

        Raises:
            WeightsError: a branch file of another kind, wrong shapes, unknown or missing names, or
                nothing that fits.
        """
        where = f"{self.source.key}: {self.source.path}"
        if self.manifest is not None:
            problem = misfit(self.manifest, settings, llm)
            if problem:
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
