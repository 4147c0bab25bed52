"""The file and the overrides of a configuration: their values, and where each of them stands."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import yaml
from omegaconf.errors import OmegaConfBaseException

from video_llama.common.registry import suggestion
from video_llama.config.yaml_file import MAX_DEPTH, YamlFile, YamlLimitError, first_line, parse_yaml
from video_llama.types import ConfigError

MAX_OVERRIDE = 4096


@dataclass(frozen=True)
class Source:
    """Where a configuration comes from, to say where a value stands."""

    file: YamlFile
    overrides: tuple[str, ...]

    def where(self, key: str) -> str:
        """`x.yaml:12`, or the override that gave `key`; the bare file for a key it lacks."""
        for override in reversed(self.overrides):
            name = override.partition("=")[0]
            if name == key or name.startswith(f"{key}.") or key.startswith(f"{name}."):
                return f"override {override!r}"
        line = self.file.line(key)
        return f"{self.file.path}:{line}" if line else str(self.file.path)

    def values(self) -> dict[str, Any]:
        """The values of the file with the overrides put over them.

        Raises:
            ConfigError: an override is not `section.key=value`.
        """
        values = copy.deepcopy(self.file.values)
        for override in self.overrides:
            _override(values, override)
        return values

    @contextmanager
    def locating(self) -> Iterator[None]:
        """Put the place of the key before errors, whose messages start with `full.key: `."""
        try:
            yield
        except ConfigError as error:
            raise ConfigError(f"{self.where(str(error).partition(': ')[0])}: {error}") from error


def _override(values: dict[str, Any], override: str) -> None:
    if len(override) > MAX_OVERRIDE:
        raise ConfigError(
            f"override {override[:40]!r}...: {len(override)} letters given, at most "
            f"{MAX_OVERRIDE} expected"
        )
    key, equals, text = override.partition("=")
    names = key.strip().split(".")
    if len(names) > MAX_DEPTH:
        raise ConfigError(f"override {override!r}: nested deeper than {MAX_DEPTH} levels")
    if not equals or len(names) < 2 or not all(names):
        raise ConfigError(f"override {override!r}: section.key=value expected")
    node = values
    for name in names[:-1]:
        if node.get(name) is None:
            node[name] = {}
        node = node[name]
        if not isinstance(node, dict):
            raise ConfigError(
                f"override {override!r}: {name} is {node!r}, not a section; "
                "replace a list as a whole: section.key=[a, b]"
            )
    value = _override_value(text, override)
    if names[0] == "datasets" and len(names) == 2 and value is None:
        _leave_out(node, names[1], override)
    else:
        node[names[-1]] = value


def _leave_out(entries: dict[str, Any], name: str, override: str) -> None:
    if name not in entries:
        hint = suggestion(name, list(entries))
        raise ConfigError(f"override {override!r}: leaves out a data set that is not there; {hint}")
    del entries[name]


def _override_value(text: str, override: str) -> Any:
    """The YAML value of `text`; text that is not YAML, or a comment to YAML, stands for itself."""
    try:
        value = parse_yaml(f"value: {text}")[1]["value"]
    except yaml.YAMLError:
        return text
    except (OmegaConfBaseException, YamlLimitError) as error:
        raise ConfigError(f"override {override!r}: {first_line(error)}") from error
    return text if value is None and text.strip() not in ("", "~", "null") else value
