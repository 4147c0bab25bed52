"""Reads a YAML with care: every way in which a file can be wrong becomes one `ConfigError`.

PyYAML keeps the last of two equal keys, expands aliases without a bound and recurses as deep as a
file is nested; here all three are errors. The parsed tree is kept, for the line of every key.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from video_llama.types import ConfigError

try:
    from yaml import CSafeLoader as Loader
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeLoader as Loader

MAX_BYTES = 1 << 20
MAX_NODES = 20_000
MAX_DEPTH = 32

_ALTERNATIVES = re.compile(r"""(["'])[^"']*\1\s+or\s+\S""")


@dataclass(frozen=True)
class YamlFile:
    """A file whose text is YAML with a mapping at the top.

    Attributes:
        path: the file, as it was given.
        values: its content, interpolations as they are written.
        root: the parsed tree; None for a file without content.
    """

    path: Path
    values: dict[str, Any]
    root: yaml.MappingNode | None

    def line(self, key: str) -> int | None:
        """The line, from 1, of a dotted key or of its nearest parent in the file; else None."""
        node: yaml.Node | None = self.root
        line = None
        for name in key.split("."):
            pairs = node.value if isinstance(node, yaml.MappingNode) else []
            found = [(k, v) for k, v in pairs if k.value == name]
            if not found:
                break
            line, node = found[0][0].start_mark.line + 1, found[0][1]
        return line


def read_yaml(path: str | Path) -> YamlFile:
    """Read a YAML file whose top level is a mapping.

    Args:
        path: the file.

    Raises:
        ConfigError: there is no such file, it is not UTF-8 or not YAML, a key stands twice, the
            top level is no mapping, or it is far larger than a configuration can be.
    """
    path = Path(path)
    text = _read_text(path)
    try:
        _check_depth(path, text)
        root = yaml.compose(text, Loader=Loader)
        if root is None:
            return YamlFile(path, {}, None)
        if not isinstance(root, yaml.MappingNode):
            raise ConfigError(
                f"{path}: the top level is a {root.id}, a mapping with the sections model, "
                "datasets and run expected"
            )
        _check_nodes(path, root)
        return YamlFile(path, plain_values(text), root)
    except yaml.YAMLError as error:
        raise ConfigError(_explain(path, text, error)) from error
    except (OmegaConfBaseException, ValueError) as error:  # `${` without end; a number too long
        raise ConfigError(f"{path}: {first_line(error)}") from error


def plain_values(text: str) -> dict[str, Any]:
    """The mapping that a YAML text says, read by OmegaConf, interpolations as they are written."""
    values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    return {str(key): value for key, value in values.items()} if isinstance(values, dict) else {}


def first_line(error: Exception) -> str:
    """The sentence of an OmegaConf error without the lines about its internals."""
    return str(error).strip().partition("\n")[0]


def _read_text(path: Path) -> str:
    if not path.exists():
        raise ConfigError(f"{path}: no such file (looked in {path.absolute().parent})")
    if path.is_dir():
        raise ConfigError(f"{path}: a folder given, a YAML file expected")
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ConfigError(
                f"{path}: {path.stat().st_size} bytes given, at most {MAX_BYTES} expected; "
                "is this a configuration?"
            )
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: byte {error.start} is not UTF-8 text; save the file as UTF-8"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _check_depth(path: Path, text: str) -> None:
    depth = 0
    for event in yaml.parse(text, Loader=Loader):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            raise ConfigError(
                f"{path}:{event.start_mark.line + 1}: nested deeper than {MAX_DEPTH} levels"
            )


def _check_nodes(path: Path, root: yaml.MappingNode) -> None:
    """Refuse repeated keys, and aliases that repeat the file without a bound."""
    sizes: dict[int, int] = {}
    if _expanded_size(path, root, sizes) > MAX_NODES:
        raise ConfigError(f"{path}: aliases (*name) expand it to more than {MAX_NODES} values")


def _expanded_size(path: Path, node: yaml.Node, sizes: dict[int, int]) -> int:
    if not isinstance(node, yaml.CollectionNode):
        return 1
    if id(node) not in sizes:
        sizes[id(node)] = MAX_NODES + 1  # what an alias inside its own anchor finds
        children = node.value
        if isinstance(node, yaml.MappingNode):
            _check_repeated(path, node)
            children = [child for pair in node.value for child in pair]
        sizes[id(node)] = 1 + sum(_expanded_size(path, child, sizes) for child in children)
    return sizes[id(node)]


def _check_repeated(path: Path, node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise ConfigError(f"{path}:{line}: a key is a {key.id}, a name expected")
        if key.value in lines:
            raise ConfigError(
                f"{path}:{line}: key {key.value!r} given twice in one mapping, first in line "
                f"{lines[key.value]}: keep one"
            )
        lines[key.value] = line


def _explain(path: Path, text: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"{path}: not YAML: {' '.join(str(error).split())}"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    problem = str(getattr(error, "problem", None) or error)
    return f"{path}:{mark.line + 1}: not YAML: {problem}: {line.strip()!r}{_hint(line, problem)}"


def _hint(line: str, problem: str) -> str:
    if _ALTERNATIVES.search(line):
        return '; "a" or "b" leaves the choice to you: keep one of the two values'
    if "\t" in line and ("tab" in problem or "start any token" in problem):
        return "; indent with spaces, not with tabs"
    return ""
