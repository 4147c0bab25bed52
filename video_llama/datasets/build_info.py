"""Where the splits of a data set lie: the `build_info` node of an entry. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

from video_llama.registry import suggestion
from video_llama.types import ConfigError

SPLITS = {"train": "train", "valid": "valid", "val": "valid", "eval": "valid", "test": "test"}
"""Names of a split to the one that it stands for."""


@dataclass(kw_only=True)
class SplitInfo:
    """Where the annotations and the media lie; which of the three is needed, the data set says."""

    anno_dir: str | None = None
    """Annotation file, or the folder of the annotation files."""
    videos_dir: str | None = None
    """Folder of the media that the annotations name."""
    storage: str | None = None
    """Folder that holds both, or the pattern of webdataset tars: `a/{000..012}.tar`, `a/*.tar`."""

    def require(self, key: Literal["anno_dir", "videos_dir", "storage"]) -> str:
        """The value of `key`, for a data set that cannot do without.

        Raises:
            ConfigError: it is not set.
        """
        value: str | None = getattr(self, key)
        if not value:
            raise ConfigError(f"build_info.{key} is not set; this data set cannot be read without")
        return value

    def require_path(self, key: Literal["anno_dir", "videos_dir", "storage"]) -> Path:
        """The same as a path.

        Raises:
            ConfigError: it is not set.
        """
        return Path(self.require(key))

    @property
    def shards(self) -> str | None:
        """The pattern of webdataset tars, if `storage` is one."""
        return self.storage if self.storage and self.storage.endswith(".tar") else None


@dataclass(kw_only=True)
class BuildInfo(SplitInfo):
    """Where the training data lies, and what else there is."""

    valid: SplitInfo = field(default_factory=SplitInfo)
    """The same for validation; videos_dir may be left out if it is that of the training data."""
    test: SplitInfo = field(default_factory=SplitInfo)
    """The same for testing."""

    def split(self, name: str) -> SplitInfo | None:
        """Where a split lies; None if this data set has no such split.

        Args:
            name: `train`, `valid` (or `val`, `eval`) or `test`.

        Raises:
            ConfigError: it is none of them.
        """
        if name not in SPLITS:
            raise ConfigError(f"unknown split {name!r}; {suggestion(name, list(SPLITS))}")
        info: SplitInfo = self if SPLITS[name] == "train" else getattr(self, SPLITS[name])
        if not (info.anno_dir or info.storage):
            return None
        return replace(info, videos_dir=info.videos_dir or self.videos_dir)
