"""The typed configuration: settings objects made of the values of a YAML, and what they must obey.

The names in the values pick the settings classes, which check themselves. `Config` checks what
concerns two sections. Messages of errors start with the full key. Torch-free.
"""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import MISSING, Field, asdict, dataclass, field, fields, is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import BooleanNode, FloatNode, IntegerNode, OmegaConf, StringNode
from omegaconf.errors import OmegaConfBaseException, ValidationError

from video_llama.common.io import package_file
from video_llama.common.registry import Registry, suggestion
from video_llama.datasets.base import DATASETS, SPLITS, DatasetSettings
from video_llama.models.settings import MODELS, ModelSettings
from video_llama.processors.settings import (
    PROCESSORS,
    AudioSettings,
    PictureSettings,
    VideoSettings,
)
from video_llama.runners.settings import RunSettings
from video_llama.types import ConfigError

T = TypeVar("T")

SECTIONS = ("model", "datasets", "run")
IGNORED_KEYS = {
    "model.device_8bit": "the quantised model follows run.device",
    "model.prompt": "caption prompts come from model.prompt_path",
    "run.distributed": "torchrun says whether there are several processes",
    "run.world_size": "torchrun says how many processes there are",
    "run.dist_url": "torchrun says where the processes meet",
}
SCALARS: dict[type, Any] = {int: IntegerNode, float: FloatNode, bool: BooleanNode, str: StringNode}
"""What converts a value to a type; OmegaConf takes "3" for a whole number, and not 3.5."""

EXPECTED = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
MAX_SHOWN = 200


class ConfigWarning(UserWarning):
    """A key of the original that is accepted and has no effect."""


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
        """Write the configuration out with every key; it loads to an equal one."""
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
        # A conversation has as many placeholders as the branch that trains gives tokens.
        branch = self.model.trained_branch
        queries: int = getattr(self.model, f"num_{branch or 'video'}_query_token")
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


def _escaped(value: object) -> object:
    """Escape every `${`, which OmegaConf would interpolate."""
    if isinstance(value, dict):
        return {key: _escaped(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_escaped(item) for item in value]
    return value.replace("${", "\\${") if isinstance(value, str) else value


def check_trainable(cfg: Config) -> None:
    """Refuse a configuration that asks for no training or evaluation that there is."""
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
    if run.fsdp and (cfg.model.lora_r or cfg.model.lora_ckpt):
        raise ConfigError("run.fsdp: true given together with LoRA, whose layers it cannot shard")
    if run.fsdp and cfg.model.quantization != "none":
        raise ConfigError("run.fsdp: true given, but a quantised LLM cannot be sharded")


def config_of(values: Mapping[str, Any]) -> tuple[Config, list[tuple[str, str]]]:
    """Make a configuration of the values of a YAML, with interpolations as they are written.

    Returns:
        The configuration, and a note for every key that has no effect: (full key, why).

    Raises:
        ConfigError: a value is not valid; the message starts with its full key.
    """
    # The names of data sets and of the model come first: they say which keys there are.
    given = _sections(values)
    notes = _drop_ignored(given)
    model_class = _named(MODELS, given["model"].get("arch", "video_llama"), "model.arch")
    given = _interpolated(given, {"model": model_class, "run": RunSettings})
    datasets = {
        name: _settings(_named(DATASETS, name, f"datasets.{name}"), entry, f"datasets.{name}")
        for name, entry in given["datasets"].items()
    }
    model = _settings(model_class, given["model"], "model")
    run = _settings(RunSettings, given["run"], "run")
    return Config(model=model, datasets=datasets, run=run), notes


def _sections(values: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the three sections and the entries of `datasets`; what is left blank is empty."""
    for name, value in values.items():
        if name not in SECTIONS:
            raise ConfigError(f"{name}: not a section; {suggestion(name, list(SECTIONS))}")
        _require_mapping(name, value)
    sections = {name: dict(values.get(name) or {}) for name in SECTIONS}
    for name, entry in sections["datasets"].items():
        _require_mapping(f"datasets.{name}", entry)
        sections["datasets"][name] = entry or {}
    return sections


def _require_mapping(key: str, value: object) -> None:
    if not isinstance(value, dict | None):
        raise ConfigError(f"{key}: {value!r} given, a mapping of settings expected")


def _drop_ignored(given: dict[str, dict[str, Any]]) -> list[tuple[str, str]]:
    notes = []
    for key, reason in IGNORED_KEYS.items():
        section, _, name = key.partition(".")
        if name in given[section]:
            del given[section][name]
            notes.append((key, f"has no effect any more: {reason}"))
    kind = given["model"].get("fusion_header_type", "seqTransf")
    if kind != "seqTransf":
        note = f"{kind!r} has no effect: only seqTransf exists"
        notes.append(("model.fusion_header_type", note))
    return notes


def _named(registry: Registry[type[T]], name: object, key: str) -> type[T]:
    if not isinstance(name, str):
        raise ConfigError(f"{key}: {name!r} given; valid: {', '.join(registry)}")
    try:
        return registry.get(name)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error


def _package(*names: object) -> str:
    """Return the value of `${package:NAME}`."""
    if len(names) != 1 or not isinstance(names[0], str) or not names[0]:
        raise ConfigError(
            f"${{package:...}} got {len(names)} values, one path such as "
            "${package:presets/tiny/llama} expected"
        )
    return str(package_file(names[0]))


OmegaConf.register_resolver("package", _package, replace=True)


def _interpolated(
    given: dict[str, dict[str, Any]], classes: dict[str, type]
) -> dict[str, dict[str, Any]]:
    """Replace every `${...}`, which may name a default of the classes of its section."""
    defaults = {
        name: OmegaConf.to_container(OmegaConf.structured(c)) for name, c in classes.items()
    }
    try:
        merged = OmegaConf.create(_merged(defaults, given))
        values: Any = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        reason = first_line(error).removeprefix(
            "ConfigError raised while resolving interpolation: "
        )
        key = str(error.full_key or "").partition("[")[0]
        raise ConfigError(f"{key}: {reason}" if key else reason) from error
    return {
        section: {name: values[section][name] for name in given[section]} for section in SECTIONS
    }


def _merged(defaults: Any, given: Any) -> Any:
    if not isinstance(defaults, dict) or not isinstance(given, dict):
        return given
    common = {name: _merged(defaults[name], given[name]) for name in defaults.keys() & given.keys()}
    return {**defaults, **given, **common}


def first_line(error: Exception) -> str:
    """Return the sentence of an OmegaConf error without the lines about its internals."""
    return str(error).strip().partition("\n")[0]


def _settings(kind: type[T], given: dict[str, Any], key: str, default: T | None = None) -> T:
    """Construct a settings class of values by name, which stand at `key` of the YAML.

    Other values are those of `default`, if there is one, or the defaults of the class.
    """
    hints, known = get_type_hints(kind), {f.name: f for f in fields(kind)}  # type: ignore[arg-type]
    values = {} if default is None else {name: getattr(default, name) for name in known}
    for name, value in given.items():
        full = f"{key}.{name}"
        if name not in known:
            raise ConfigError(f"{full}: not a setting; {suggestion(str(name), list(known))}")
        before = values[name] if name in values else _field_default(known[name])
        values[name] = _value(value, hints[name], full, before)
    # A dataclass reports a missing argument by a TypeError without the full key.
    for name, declared in known.items():
        if name not in values and _field_default(declared) is MISSING:
            raise ConfigError(f"{key}.{name}: required, but not given")
    try:
        return kind(**values)
    except ConfigError as error:  # of the class about its own fields
        raise ConfigError(f"{key}.{error}") from error


def _field_default(declared: Field[Any]) -> Any:
    if declared.default_factory is not MISSING:
        return declared.default_factory()
    return declared.default


def _value(value: Any, hint: Any, key: str, default: Any) -> Any:
    """Convert a value of a YAML to the type of its field."""
    kind, optional = _without_none(hint)
    if isinstance(kind, type) and is_dataclass(kind):
        if value is None:  # a node left blank has its defaults
            return None if optional else default
        if not isinstance(value, dict):
            raise _wrong_value(key, value, hint)
        # A processor's class depends on its `name`, not on the field that holds it.
        if named := [n for n in PROCESSORS if issubclass(PROCESSORS.get(n), kind)]:
            return _processor(value, named, key, default)
        return _settings(kind, value, key, default)
    if value is None and optional:
        return None
    try:
        return _converted(value, kind)
    except (ValidationError, ValueError, OverflowError):
        raise _wrong_value(key, value, hint) from None


def _processor(given: dict[str, Any], valid: list[str], key: str, default: Any) -> Any:
    """Construct the processor settings that `name` picks, else change those of the default."""
    name = given.get("name")
    if name is None and default is None:
        raise ConfigError(f"{key}.name: required, but not given; valid: {', '.join(valid)}")
    if name is None:
        return _settings(type(default), given, key, default)
    # Another processor has other defaults: nothing of the default's values is kept.
    if name not in valid:
        raise ConfigError(f"{key}.name: {name!r} given; {suggestion(str(name), valid)}")
    return _settings(PROCESSORS.get(name), given, key)


def _converted(value: Any, kind: Any) -> Any:
    """Convert a scalar, or a list of scalars; a ValueError says that it does not fit."""
    origin, kinds = get_origin(kind), get_args(kind)
    if origin in (list, tuple):
        if not isinstance(value, list) or (origin is tuple and len(value) != len(kinds)):
            raise ValueError
        return [_converted(item, kinds[0]) for item in value]
    if origin is Literal:
        if value not in kinds:
            raise ValueError
        return value
    # OmegaConf would make text of a bool, and is not asked about null and nodes.
    if value is None or isinstance(value, dict | list) or (kind is str and isinstance(value, bool)):
        raise ValueError
    return SCALARS[kind](value=value, is_optional=False)._value()


def _without_none(hint: Any) -> tuple[Any, bool]:
    """Return the type without its None, and whether there was one."""
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [arg for arg in get_args(hint) if arg is not type(None)]
        return kinds[0], True
    return hint, False


def _wrong_value(key: str, value: object, hint: Any) -> ConfigError:
    words = {"None": "null", "True": "true", "False": "false"}  # Python's to YAML's
    shown = words.get(repr(value), repr(value))[:MAX_SHOWN]
    kind, optional = _without_none(hint)
    origin, kinds = get_origin(kind), get_args(kind)
    if origin is Literal:
        return ConfigError(f"{key}: {shown} given; {suggestion(str(value), list(kinds))}")
    # The words of a YAML, not those of Python.
    if is_dataclass(kind):
        expected = f"a mapping with the keys {', '.join(get_type_hints(kind))}"
    elif origin in (list, tuple):
        many = f"a list of {len(kinds)} numbers"
        expected = "a list such as [a, b]" if origin is list else many
    else:
        expected = EXPECTED[kind]
    return ConfigError(f"{key}: {shown} given, {expected}{' or null' * optional} expected")
