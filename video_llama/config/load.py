"""A YAML becomes one typed object: `load_config`. Torch-free.

The names in the file pick the settings classes; OmegaConf merges, interpolates and converts; the
classes check themselves; `Config` checks what concerns two sections.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from omegaconf import OmegaConf

from video_llama.common.io import resource
from video_llama.common.registry import suggestion
from video_llama.config.schema import merged_settings
from video_llama.config.source import Source
from video_llama.config.yaml_file import read_yaml
from video_llama.datasets.base import SPLITS, DatasetSettings
from video_llama.models.settings import ModelSettings
from video_llama.processors.settings import AudioSettings, PictureSettings, VideoSettings
from video_llama.runners.settings import RunSettings
from video_llama.types import ConfigError


@dataclass(kw_only=True)
class Config:
    """What a YAML says, typed and complete: nothing below has to know a default."""

    model: ModelSettings
    """The model section."""
    datasets: dict[str, DatasetSettings] = field(default_factory=dict)
    """Registered name to entry, in the order of the file."""
    run: RunSettings = field(default_factory=RunSettings)
    """The run section."""

    def __post_init__(self) -> None:
        for name, entry in self.datasets.items():
            self._complete(name, entry)
            self._check_media_sizes(name, entry)
        self._check_ratios()

    def to_yaml(self) -> str:
        """The configuration with every key written out; loads to an equal one."""
        values = {str(key): _escaped(value) for key, value in asdict(self).items()}
        return OmegaConf.to_yaml(OmegaConf.create(values))

    def _complete(self, name: str, entry: DatasetSettings) -> None:
        """Fill what an entry takes from the model, and refuse what disagrees with it."""
        entry.tokenizer_name = entry.tokenizer_name or self.model.llama_model
        if entry.model_type == "auto":
            entry.model_type = self.model.template
        if entry.model_type != self.model.template:
            raise ConfigError(
                f"datasets.{name}.model_type: {entry.model_type} given, but the model's template "
                f"is {self.model.template} (model.model_type, model.template): make them agree"
            )
        branch = self.model.trained_branch
        queries = self.model.num_video_query_token
        if branch == "audio":
            queries = self.model.num_audio_query_token
        entry.num_video_query_token = entry.num_video_query_token or queries
        if not entry.has_conversations or branch is None:
            return
        if entry.num_video_query_token != queries:
            raise ConfigError(
                f"datasets.{name}.num_video_query_token: {entry.num_video_query_token} given, but "
                f"model.num_{branch}_query_token of the branch that trains is {queries}"
            )

    def _check_media_sizes(self, name: str, entry: DatasetSettings) -> None:
        for split in ("train", "eval"):
            pictures = getattr(entry.vis_processor, split)
            if pictures is not None:
                self._check_pictures(f"datasets.{name}.vis_processor.{split}", pictures)
            sound: AudioSettings | None = getattr(entry.audio_processor, split)
            if sound is not None:
                key = f"datasets.{name}.audio_processor.{split}.clips_per_video"
                self._check_count(key, sound.clips_per_video, "max_audio_clips")

    def _check_pictures(self, key: str, pictures: PictureSettings) -> None:
        if pictures.image_size != self.model.image_size:
            raise ConfigError(
                f"{key}.image_size: {pictures.image_size} given, but model.image_size is "
                f"{self.model.image_size}: make them agree"
            )
        if isinstance(pictures, VideoSettings):
            self._check_count(f"{key}.n_frms", pictures.n_frms, "max_frame_pos")
            if self.model.trained_branch == "audio":  # every frame is a segment to that branch
                self._check_count(f"{key}.n_frms", pictures.n_frms, "max_audio_clips")

    def _check_count(self, key: str, count: int, limit_key: str) -> None:
        limit = getattr(self.model, limit_key)
        if count > limit and not self.model.interpolate_positions:
            raise ConfigError(
                f"{key}: {count} given, but model.{limit_key} is {limit}; take fewer, or set "
                "model.interpolate_positions to true"
            )

    def _check_ratios(self) -> None:
        given = {name: entry.sample_ratio for name, entry in self.datasets.items()}
        without = [name for name, ratio in given.items() if ratio is None]
        if without and len(without) < len(given):
            raise ConfigError(
                f"datasets.{without[0]}.sample_ratio: not given, but other data sets have one; "
                "give it to all of them or to none"
            )
        if given and not without and not sum(ratio or 0 for ratio in given.values()):
            raise ConfigError(f"datasets.{next(iter(given))}.sample_ratio: 0 in every data set")


def load_config(path: str | Path, overrides: Sequence[str] = ()) -> Config:
    """Read, complete and check a configuration. No weight or data file is looked for.

    Args:
        path: the YAML.
        overrides: `section.key=value` each, applied in order; the value is YAML, or else text.
            `datasets.NAME=null` leaves a data set of the file out.

    Raises:
        ConfigError: the file or an override is wrong; names the file and line (or the override),
            the full key, what was given and what is valid.
    """
    source = Source(read_yaml(path), tuple(overrides))
    values = source.values()
    with source.locating():
        model, datasets, run = merged_settings(values, source)
        config = Config(model=model, datasets=datasets, run=run)
    config.model.prompt_path = _shipped_if_absent(config.model.prompt_path, Path(path))
    return config


def _shipped_if_absent(name: str | None, yaml_path: Path) -> str | None:
    """`name` itself, or else the file of that name near the YAML or shipped with the project."""
    if not name or Path(name).exists():
        return name
    folder = yaml_path.absolute().parent
    for candidate in (folder / name, folder.parent / name):
        if candidate.exists():
            return str(candidate)
    try:
        return str(resource(name))
    except FileNotFoundError:
        return name


def _escaped(value: object) -> object:
    """The same value with `${` escaped, which OmegaConf would interpolate."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def check_trainable(cfg: Config) -> None:
    """Refuse a configuration that asks for no training or evaluation that there is.

    Args:
        cfg: of `load_config`.

    Raises:
        ConfigError: names the key, what was given and what is expected.
    """
    run, branch = cfg.run, cfg.model.trained_branch
    if not cfg.datasets:
        raise ConfigError("datasets: empty; name the data sets to train or evaluate on")
    if run.device == "meta":
        raise ConfigError("run.device: meta has no weights to train; use auto")
    for key in ("train_splits", "valid_splits", "test_splits"):
        for split in getattr(run, key):
            if split not in SPLITS:
                hint = suggestion(split, list(SPLITS))
                raise ConfigError(f"run.{key}: unknown split {split!r}; {hint}")
    if run.evaluate and not run.valid_splits + run.test_splits:
        raise ConfigError("run.evaluate: true, but run.valid_splits and run.test_splits are empty")
    if not run.evaluate and len(run.train_splits) != 1:
        raise ConfigError(f"run.train_splits: {run.train_splits} given, one split expected")
    if not run.evaluate and branch is None:
        raise ConfigError(
            "model.frozen_video_Qformer: true, and no other branch trains; set it to false for the "
            "video branch, or equip_audio_branch to true and frozen_audio_Qformer to false"
        )
    if run.fsdp and cfg.model.quantization != "none":
        raise ConfigError("run.fsdp: true given, but a quantised LLM cannot be sharded")
