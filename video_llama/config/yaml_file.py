"""Reads a YAML with care: every way in which a file can be wrong becomes one `ConfigError`.

PyYAML keeps the last of two equal keys, expands aliases without a bound, recurses as deep as a file
is nested and fails in many ways at odd tags and numbers; here all of these are errors. So are
interpolations too long for OmegaConf. The parsed tree is kept, for the line of every key.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml.constructor import ConstructorError, SafeConstructor
from yaml.scanner import ScannerError

from video_llama.types import ConfigError

try:
    from yaml import CSafeLoader as Loader
except ImportError:  # PyYAML was built without libyaml
    from yaml import SafeLoader as Loader

MAX_BYTES = 1 << 20
MAX_NODES = 20_000
MAX_DEPTH = 32
MAX_INTERPOLATION = 1024
MAX_DIGITS = 64
MAX_BRACKETS = 16
MAX_SHOWN = 200

_TAG = "tag:yaml.org,2002:"
_TAGS = {f"{_TAG}{name}" for name in ("str", "int", "float", "bool", "null", "map", "seq")}
_ODD_VALUE = (ValueError, LookupError, AttributeError, TypeError, ArithmeticError)
"""What PyYAML's constructors raise at values that their tags do not fit."""

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
        root, values = parse_yaml(text)
    except YamlLimitError as error:
        line = f":{error.line}" if error.line else ""
        raise ConfigError(f"{path}{line}: {error}") from error
    except yaml.YAMLError as error:
        raise ConfigError(_explain(path, text, error)) from error
    except OmegaConfBaseException as error:  # `${` without end
        raise ConfigError(f"{path}: {first_line(error)}") from error
    return YamlFile(path, values, root)


class YamlLimitError(Exception):
    """YAML that is understood, but that no configuration can mean.

    Args:
        reason: the message.
        line: where, from 1, if it is known.
    """

    def __init__(self, reason: str, line: int | None = None) -> None:
        super().__init__(reason)
        self.line = line


def parse_yaml(text: str) -> tuple[yaml.MappingNode | None, dict[str, Any]]:
    """The tree and the values of a YAML mapping, interpolations as they are written.

    Args:
        text: the YAML; without content it has no tree and no values.

    Raises:
        YamlLimitError: it is nested too deeply, too large, no mapping or says a key twice.
        yaml.YAMLError: it is not YAML, or a value does not fit its tag.
        OmegaConfBaseException: an interpolation is malformed.
    """
    _check_events(text)
    root: yaml.Node | None = yaml.compose(text, Loader=Loader)
    if root is None:
        return None, {}
    if not isinstance(root, yaml.MappingNode):
        raise YamlLimitError(
            f"the top level is a {root.id}, a mapping with the sections model, "
            "datasets and run expected"
        )
    _check_nodes(root)
    try:
        values = OmegaConf.to_container(OmegaConf.create(text), resolve=False)
    except _ODD_VALUE as error:
        raise _bad_value(root) from error
    return root, {str(k): v for k, v in values.items()} if isinstance(values, dict) else {}


def first_line(error: Exception) -> str:
    """The sentence of an OmegaConf error without the lines about its internals."""
    return str(error).strip().partition("\n")[0]


def _read_text(path: Path) -> str:
    try:
        if not path.exists():
            raise ConfigError(f"{path}: no such file (looked in {path.absolute().parent})")
        if path.is_dir():
            raise ConfigError(f"{path}: a folder given, a YAML file expected")
        if not path.is_file():
            raise ConfigError(f"{path}: a device or pipe given, a YAML file expected")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
        if len(content) > MAX_BYTES:
            raise ConfigError(
                f"{path}: more than {MAX_BYTES} bytes given, fewer expected; "
                "is this a configuration?"
            )
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path}: byte {error.start} is not UTF-8 text; save the file as UTF-8"
        ) from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def _check_events(text: str) -> None:
    """Refuse deep nesting, and tags of what no setting holds, before anything is built."""
    depth = 0
    for event in _events(text):
        if isinstance(event, yaml.CollectionStartEvent):
            depth += 1
        elif isinstance(event, yaml.CollectionEndEvent):
            depth -= 1
        if depth > MAX_DEPTH:
            line = event.start_mark.line + 1
            raise YamlLimitError(f"nested deeper than {MAX_DEPTH} levels", line)
        tag = getattr(event, "tag", None)
        if tag not in (None, "!") and tag not in _TAGS:
            shown = tag.replace(_TAG, "!!")
            raise ConstructorError(
                None, None, f"the tag {shown} is for no setting; leave it out", event.start_mark
            )


def _events(text: str) -> Iterator[Any]:
    try:
        yield from yaml.parse(text, Loader=Loader)
    except ScannerError as error:
        # Since 6.0.4 PyYAML has a limit of its own, far above ours but before its first event.
        if "nesting depth" not in (error.problem or ""):
            raise
        line = None if error.problem_mark is None else error.problem_mark.line + 1
        raise YamlLimitError(f"nested deeper than {MAX_DEPTH} levels", line) from error


def _check_nodes(root: yaml.MappingNode) -> None:
    """Refuse what is no name or said twice, and aliases that repeat the file without a bound."""
    size, depth = _expanded(root, {})
    if size > MAX_NODES:
        raise YamlLimitError(f"aliases (*name) expand it to more than {MAX_NODES} values")
    if depth > MAX_DEPTH:
        raise YamlLimitError(f"aliases (*name) nest it deeper than {MAX_DEPTH} levels")


def _expanded(node: yaml.Node, known: dict[int, tuple[int, int]]) -> tuple[int, int]:
    """The number of values below a node and their depth, aliases written out."""
    if not isinstance(node, yaml.CollectionNode):
        _check_scalar(node)
        return 1, 0
    if id(node) not in known:
        known[id(node)] = MAX_NODES + 1, 0  # what an alias inside its own anchor finds
        if isinstance(node, yaml.MappingNode):
            _check_keys(node)
        below = [_expanded(child, known) for child in _children(node)]
        known[id(node)] = (
            1 + sum(size for size, _ in below),
            1 + max((depth for _, depth in below), default=0),
        )
    return known[id(node)]


def _children(node: yaml.CollectionNode) -> list[yaml.Node]:
    if isinstance(node, yaml.MappingNode):
        return [child for pair in node.value for child in pair]
    return list(node.value)


def _check_scalar(node: yaml.Node) -> None:
    """Refuse numbers that no float holds, and what OmegaConf's grammar would read for minutes."""
    text = node.value
    if node.tag == f"{_TAG}int" and len(text) > MAX_DIGITS:
        raise ConstructorError(None, None, f"a number of {len(text)} digits", node.start_mark)
    if "${" not in text:
        return
    line = node.start_mark.line + 1
    if len(text) > MAX_INTERPOLATION:
        raise YamlLimitError(f"a value with ${{ is longer than {MAX_INTERPOLATION} letters", line)
    if sum(text.count(bracket) for bracket in "{[(") > MAX_BRACKETS:
        raise YamlLimitError(f"a value with ${{ has more than {MAX_BRACKETS} brackets", line)


def _check_keys(node: yaml.MappingNode) -> None:
    lines: dict[str, int] = {}
    for key, _ in node.value:
        line = key.start_mark.line + 1
        if not isinstance(key, yaml.ScalarNode):
            raise YamlLimitError(f"a key is a {key.id}, a name expected", line)
        if key.tag in (f"{_TAG}null", f"{_TAG}timestamp"):
            raise YamlLimitError(f"the key {key.value!r} is no name, a name expected", line)
        if key.value in lines:
            raise YamlLimitError(
                f"key {key.value!r} given twice in one mapping, first in line "
                f"{lines[key.value]}: keep one",
                line,
            )
        lines[key.value] = line


def _bad_value(root: yaml.MappingNode) -> ConstructorError:
    """An error at the first value that its tag does not fit."""
    node = next((node for node in _scalars(root) if not _fits_tag(node)), root)
    return ConstructorError(
        None, None, f"bad value for {node.tag.replace(_TAG, '!!')}", node.start_mark
    )


def _scalars(node: yaml.Node) -> Iterator[yaml.ScalarNode]:
    if isinstance(node, yaml.CollectionNode):
        for child in _children(node):
            yield from _scalars(child)
    else:
        yield node


def _fits_tag(node: yaml.ScalarNode) -> bool:
    try:
        SafeConstructor().construct_object(node)
    except _ODD_VALUE:
        return False
    return True


def _explain(path: Path, text: str, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    if mark is None:
        return f"{path}: not YAML: {' '.join(str(error).split())}"
    lines = text.splitlines()
    line = lines[mark.line] if mark.line < len(lines) else ""
    shown = line.strip()[:MAX_SHOWN]
    problem = str(getattr(error, "problem", None) or error)
    return f"{path}:{mark.line + 1}: not YAML: {problem}: {shown!r}{_hint(line, problem)}"


def _hint(line: str, problem: str) -> str:
    if _ALTERNATIVES.search(line):
        return '; "a" or "b" leaves the choice to you: keep one of the two values'
    if "\t" in line and ("tab" in problem or "start any token" in problem):
        return "; indent with spaces, not with tabs"
    return ""
