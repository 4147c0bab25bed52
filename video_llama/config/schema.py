"""Finds the settings classes that a YAML names and converts its values to them.

OmegaConf's and the classes' own errors pass through here and come out as `ConfigError` with the
place, the full key, the value and what is valid.
"""

from __future__ import annotations

import types
import warnings
from dataclasses import is_dataclass
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf, TupleConfig
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException, ValidationError

from video_llama.common.io import package_file
from video_llama.common.registry import Registry, suggestion
from video_llama.config.source import Source
from video_llama.config.yaml_file import MAX_SHOWN, first_line
from video_llama.datasets.base import DATASETS, DatasetSettings
from video_llama.models.settings import MODELS, ModelSettings
from video_llama.processors.settings import PROCESSORS
from video_llama.runners.settings import RunSettings
from video_llama.types import ConfigError

T = TypeVar("T")

SECTIONS = ("model", "datasets", "run")
PROCESSOR_KINDS = ("vis_processor", "text_processor", "audio_processor")
IGNORED_KEYS = {
    "model.device_8bit": "the quantised model follows run.device",
    "model.prompt": "caption prompts come from model.prompt_path",
    "run.distributed": "torchrun says whether there are several processes",
    "run.world_size": "torchrun says how many processes there are",
    "run.dist_url": "torchrun says where the processes meet",
}


def _package(*names: object) -> str:
    """The value of `${package:NAME}`."""
    if len(names) != 1 or not isinstance(names[0], str) or not names[0]:
        raise ConfigError(
            f"${{package:...}} got {len(names)} values, one path such as "
            "${package:presets/tiny/llama} expected"
        )
    return str(package_file(names[0]))


OmegaConf.register_resolver("package", _package, replace=True)


class ConfigWarning(UserWarning):
    """A key of the original that is accepted and has no effect."""


def merged_settings(
    values: dict[str, Any], source: Source
) -> tuple[ModelSettings, dict[str, DatasetSettings], RunSettings]:
    """The three sections as objects, which have checked themselves.

    Args:
        values: the values of `source`, overrides included.
        source: where they stand, for warnings.

    Raises:
        ConfigError: the message starts with the full key; `Source.locating` adds the place.
    """
    given = _sections(values)
    _drop_ignored(given, source)
    schema = _schema(given)
    for section in ("model", "run"):
        _check_keys(given[section], schema[section], section)
    for name, entry in given["datasets"].items():
        _check_keys(entry, schema["datasets"][name], f"datasets.{name}")
    try:
        built = _build(OmegaConf.merge(schema, given), "")
    except OmegaConfBaseException as error:
        raise _translated(error, given, schema) from error
    return built["model"], built["datasets"], built["run"]


def _sections(values: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The three sections and the entries of `datasets`; what is left blank is empty."""
    for name, value in values.items():
        if name not in SECTIONS:
            raise ConfigError(f"{name}: not a section; {suggestion(name, list(SECTIONS))}")
        _require_mapping(name, value)
    sections: dict[str, dict[str, Any]] = {name: values.get(name) or {} for name in SECTIONS}
    for name, entry in sections["datasets"].items():
        _require_mapping(f"datasets.{name}", entry)
        sections["datasets"][name] = entry or {}
    return sections


def _require_mapping(key: str, value: object) -> None:
    if not isinstance(value, dict | None):
        raise ConfigError(f"{key}: {value!r} given, a mapping of settings expected")


def _drop_ignored(given: dict[str, dict[str, Any]], source: Source) -> None:
    for key, reason in IGNORED_KEYS.items():
        section, _, name = key.partition(".")
        if name in given[section]:
            del given[section][name]
            _warn(f"{source.where(key)}: {key} has no effect any more: {reason}")
    kind = given["model"].get("fusion_header_type", "seqTransf")
    if kind != "seqTransf":
        where = source.where("model.fusion_header_type")
        _warn(f"{where}: model.fusion_header_type {kind!r} has no effect: only seqTransf exists")


def _warn(message: str) -> None:
    warnings.warn(message, ConfigWarning, stacklevel=5)  # the caller of load_config


def _schema(given: dict[str, dict[str, Any]]) -> DictConfig:
    """The structured node of everything that `given` names, processors included."""
    model = _named(MODELS, given["model"].get("arch", "video_llama"), "model.arch")
    datasets: dict[str, DictConfig] = {}
    for name, entry in given["datasets"].items():
        key = f"datasets.{name}"
        datasets[name] = OmegaConf.structured(_named(DATASETS, name, key))
        for kind in PROCESSOR_KINDS:
            pair = entry.get(kind)
            for split, node in pair.items() if isinstance(pair, dict) else ():
                if isinstance(node, dict) and split in datasets[name][kind]:
                    where = f"{key}.{kind}.{split}.name"
                    _place_processor(datasets[name][kind], split, node, where)
    return OmegaConf.create(
        {
            "model": OmegaConf.structured(model),
            "datasets": datasets,
            "run": OmegaConf.structured(RunSettings),
        }
    )


def _place_processor(pair: DictConfig, split: str, node: dict[str, Any], key: str) -> None:
    """Put the schema of the processor that `node` names where the pair has the default's."""
    kind, _ = _kind(get_type_hints(OmegaConf.get_type(pair))[split])
    valid = [name for name in PROCESSORS if issubclass(PROCESSORS.get(name), kind)]
    name = node.get("name")
    if name is None and pair[split] is None:
        raise ConfigError(f"{key}: required, but not given; valid: {', '.join(valid)}")
    if name is not None:
        if name not in valid:
            raise ConfigError(f"{key}: {name!r} given; {suggestion(str(name), valid)}")
        pair[split] = OmegaConf.structured(PROCESSORS.get(name)(name=name))


def _named(registry: Registry[type[T]], name: str, key: str) -> type[T]:
    if not isinstance(name, str):
        raise ConfigError(f"{key}: {name!r} given; valid: {', '.join(registry)}")
    try:
        return registry.get(name)
    except ConfigError as error:
        raise ConfigError(f"{key}: {error}") from error


def _check_keys(given: dict[str, Any], schema: DictConfig, key: str) -> None:
    """Refuse unknown keys and values where a mapping belongs, which OmegaConf reports badly."""
    hints = get_type_hints(OmegaConf.get_type(schema))
    for name, value in list(given.items()):
        full = f"{key}.{name}"
        if name not in hints:
            raise ConfigError(f"{full}: not a setting; {suggestion(str(name), list(hints))}")
        kind, optional = _kind(hints[name])
        if value is None and is_dataclass(kind) and not optional:
            del given[name]  # a node left blank has its defaults
        elif value is None or _interpolates(value):
            continue
        elif is_dataclass(kind) and isinstance(value, dict):
            _check_keys(value, schema[name], full)
        elif not _fits(value, kind):
            raise _wrong_value(full, value, hints[name])


def _fits(value: object, kind: Any) -> bool:
    """Whether `value` has the shape of `kind`, where OmegaConf would bend it or name no key."""
    if is_dataclass(kind):
        return isinstance(value, dict)
    if get_origin(kind) in (list, tuple):
        kinds = get_args(kind)
        if not isinstance(value, list) or (get_origin(kind) is tuple and len(value) != len(kinds)):
            return False
        return all(item is not None and _fits(item, kinds[0]) for item in value)
    return not isinstance(value, dict | list) and not (kind is str and isinstance(value, bool))


def _interpolates(value: object) -> bool:
    return isinstance(value, str) and value.startswith("${")


def _kind(hint: Any) -> tuple[Any, bool]:
    """The type without its None, and whether there was one."""
    if get_origin(hint) in (Union, types.UnionType):
        kinds = [arg for arg in get_args(hint) if arg is not type(None)]
        return kinds[0], True
    return hint, False


def _build(node: Any, key: str) -> Any:
    """OmegaConf's node as the object that its schema stands for, from the leaves up."""
    if isinstance(node, ListConfig | TupleConfig):
        return [_build(item, key) for item in node]
    if not OmegaConf.is_dict(node):
        return node
    values = {str(name): _build(node[name], f"{key}.{name}".lstrip(".")) for name in node}
    kind = OmegaConf.get_type(node)
    if not is_dataclass(kind):
        return values
    try:
        return kind(**values)
    except ConfigError as error:
        raise ConfigError(f"{key}.{error}") from error


def _translated(
    error: OmegaConfBaseException, given: dict[str, Any], schema: DictConfig
) -> ConfigError:
    key = str(error.full_key or "").partition("[")[0]
    if not key:
        return ConfigError(first_line(error))
    if isinstance(error, MissingMandatoryValue):
        return ConfigError(f"{key}: required, but not given")
    if not isinstance(error, ValidationError):  # an interpolation that leads nowhere
        reason = first_line(error).removeprefix(
            "ConfigError raised while resolving interpolation: "
        )
        return ConfigError(f"{key}: {reason}")
    section, _, name = key.rpartition(".")
    hint = get_type_hints(OmegaConf.get_type(OmegaConf.select(schema, section)))[name]
    value: Any = given
    for part in key.split("."):
        value = value.get(part)
    return _wrong_value(key, value, hint)


def _wrong_value(key: str, value: object, hint: Any) -> ConfigError:
    words = {"None": "null", "True": "true", "False": "false"}  # Python's to YAML's
    shown = words.get(repr(value), repr(value))[:MAX_SHOWN]
    kind, optional = _kind(hint)
    null = " or null" if optional else ""
    if get_origin(kind) is Literal:
        return ConfigError(f"{key}: {shown} given; {suggestion(str(value), list(get_args(kind)))}")
    return ConfigError(f"{key}: {shown} given, {_description(kind)}{null} expected")


def _description(kind: Any) -> str:
    if is_dataclass(kind):
        return f"a mapping with the keys {', '.join(get_type_hints(kind))}"
    if get_origin(kind) is list:
        return "a list such as [a, b]"
    if get_origin(kind) is tuple:
        return f"a list of {len(get_args(kind))} numbers"
    return {int: "a whole number", float: "a number", bool: "true or false"}.get(kind, "text")
