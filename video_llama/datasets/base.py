"""Settings of a data set: every key of an entry of the `datasets` section. Torch-free.

A data set is one file, with its settings and its reader, and one line in `datasets/__init__.py`:

    @DATASETS.register("my_clips")
    @dataclass(kw_only=True)
    class MyClipsSettings(VideoDatasetSettings):
        '''My clips.'''

        def read(self, info: SplitInfo) -> Records:
            '''Read tables with the columns file and text.'''
            from video_llama.datasets.tables import TableRecords, read_tables

            folder = info.require_path("videos_dir")
            path = info.require_path("anno_dir")
            table = read_tables(path, ("file", "text"), key="file", caption="text")
            locate = partial(_locate, folder)
            return TableRecords([table["file"]], table["text"], locate=locate, folder=folder)


    def _locate(folder: Path, file: str) -> tuple[str, Path]:
        return file, folder / file

`read` imports what reads tables (pyarrow takes 0.2 s), so that `--help` and a YAML with a mistake
do not wait for it. A set of conversations says `has_conversations = True` and gives the texts of
`pack_turns`. docs/data.md has the same example, and a test that follows it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import ClassVar, Literal

from video_llama.common.checks import MAX_POSITIONS, MAX_STEPS, MAX_TOKENS, at_least, at_most
from video_llama.common.registry import Registry, suggestion
from video_llama.datasets.records import Records
from video_llama.processors.settings import (
    AudioSettings,
    CaptionSettings,
    ImageTrainSettings,
    PictureSettings,
    VideoTrainSettings,
)
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
        """Return the value of `key`, for a data set that cannot do without.

        Raises:
            ConfigError: it is not set.
        """
        value: str | None = getattr(self, key)
        if not value:
            raise ConfigError(f"build_info.{key} is not set; this data set cannot be read without")
        return value

    def require_path(self, key: Literal["anno_dir", "videos_dir", "storage"]) -> Path:
        """Return the same as a path."""
        return Path(self.require(key))

    @property
    def shards(self) -> str | None:
        """Return the pattern of webdataset tars, if `storage` is one."""
        return self.storage if self.storage and self.storage.endswith(".tar") else None


@dataclass(kw_only=True)
class BuildInfo(SplitInfo):
    """Where the training data lies, and what else there is."""

    valid: SplitInfo = field(default_factory=SplitInfo)
    """The same for validation; videos_dir may be left out if it is that of the training data."""
    test: SplitInfo = field(default_factory=SplitInfo)
    """The same for testing."""

    def split(self, name: str) -> SplitInfo | None:
        """Return where `train`, `valid` (`val`, `eval`) or `test` lies; None without such a split.

        Raises:
            ConfigError: it is none of them.
        """
        if name not in SPLITS:
            raise ConfigError(f"unknown split {name!r}; {suggestion(name, list(SPLITS))}")
        info: SplitInfo = self if SPLITS[name] == "train" else getattr(self, SPLITS[name])
        if not (info.anno_dir or info.storage):
            return None
        return replace(info, videos_dir=info.videos_dir or self.videos_dir)


DATASETS: Registry[type[DatasetSettings]] = Registry("data set")
"""The name of an entry to the class of its settings."""


@dataclass(kw_only=True)
class VisProcessors:
    """The processors of pictures and clips."""

    train: PictureSettings | None = None
    """For the training splits, and for the chat; null: none."""
    eval: PictureSettings | None = None
    """For the validation and test splits; null: that of train."""


@dataclass(kw_only=True)
class TextProcessors:
    """The processors of captions."""

    train: CaptionSettings | None = field(default_factory=CaptionSettings)
    """For the training splits; null: captions stay as they are."""
    eval: CaptionSettings | None = None
    """For the validation and test splits; null: that of train."""


@dataclass(kw_only=True)
class AudioProcessors:
    """The processors of sound."""

    train: AudioSettings | None = None
    """For the training splits, and for the chat; null: a data set yields no sound."""
    eval: AudioSettings | None = None
    """For the validation and test splits; null: that of train."""


@dataclass(kw_only=True)
class DatasetSettings:
    """One entry of the `datasets` section."""

    has_conversations: ClassVar[bool] = False
    """Whether the items are tokenised conversations, which hold the media positions."""
    cleans_captions: ClassVar[bool] = True
    """Whether captions go through the text processor."""
    train_sampling: ClassVar[str] = "uniform"
    """How `sampling: auto` chooses the frames of a clip in training."""

    data_type: str = "images"
    """Kind of media: image(s), video(s) or audio; `cn` in it leaves the frame times out."""
    build_info: BuildInfo = field(default_factory=BuildInfo)
    """Where the data lies."""
    vis_processor: VisProcessors = field(
        default_factory=lambda: VisProcessors(train=ImageTrainSettings())
    )
    """Processors of pictures and clips."""
    text_processor: TextProcessors = field(default_factory=TextProcessors)
    """Processors of captions."""
    audio_processor: AudioProcessors = field(default_factory=AudioProcessors)
    """Processors of sound."""
    sample_ratio: float | None = None
    """How often this set is drawn, relative to the others; null in all sets: all alike."""

    model_type: Literal["auto", "vicuna", "llama_v2"] = "auto"
    """Conversation format, that of the model; auto: taken from it. After loading never auto."""
    tokenizer_name: str | None = None
    """Folder of the tokenizer; null: model.llama_model."""
    num_video_query_token: int | None = None
    """Media positions in a conversation; null: the queries of the branch that trains."""
    max_length: int = 512
    """Longest conversation, tokens."""
    bucket_batches: int = 8
    """Batches whose items are sorted by text length together, to waste little padding; 1: none."""

    def __post_init__(self) -> None:
        at_least(self, 0, "sample_ratio")
        at_least(self, 1, "num_video_query_token", "max_length", "bucket_batches")
        at_most(self, MAX_POSITIONS, "num_video_query_token", "bucket_batches")
        at_most(self, MAX_TOKENS, "max_length")
        at_most(self, MAX_STEPS, "sample_ratio")
        if not self.data_type.startswith(("image", "video", "audio")):
            raise ConfigError(
                f"data_type: {self.data_type!r} given, "
                "image(s), video(s) (with cn at the end: Chinese) or audio expected"
            )

    def read(self, info: SplitInfo) -> Records:
        """Read the annotation of items that lie in files of their own, not in webdataset tars.

        Raises:
            ConfigError: they cannot be read, or this data set comes in tars only.
        """
        raise ConfigError(
            f"build_info.storage: {info.storage!r} given, the pattern of webdataset tars "
            "expected, such as data/{000..012}.tar"
        )


@dataclass(kw_only=True)
class VideoDatasetSettings(DatasetSettings):
    """What the data sets of clips share."""

    data_type: str = "video"
    """See `DatasetSettings`."""
    vis_processor: VisProcessors = field(
        default_factory=lambda: VisProcessors(train=VideoTrainSettings())
    )
    """See `DatasetSettings`."""
