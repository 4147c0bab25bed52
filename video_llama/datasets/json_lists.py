"""Reading annotation files in JSON, with care: what is wrong is named with its place."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from video_llama.datasets.annotation_files import refuse_device
from video_llama.text import clean_text
from video_llama.types import ConfigError

BATCH_ROWS = 65536


def read_json(path: Path) -> Any:
    """The value of a JSON file.

    Raises:
        ConfigError: there is no such file, or it is not JSON in UTF-8; names the line.
    """
    refuse_device(path)
    if path.is_dir():
        raise ConfigError(f"{path}: a folder given, a JSON file expected")
    try:
        return json.loads(path.read_bytes().decode("utf-8-sig"))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error
    except json.JSONDecodeError as error:
        raise ConfigError(
            f"{path}:{error.lineno}: not JSON: {error.msg} (column {error.colno})"
        ) from error
    except RecursionError as error:
        raise ConfigError(f"{path}: nested too deep for an annotation") from error
    except ValueError as error:  # not UTF-8, or a number with thousands of digits
        raise ConfigError(f"{path}: not JSON in UTF-8: {error}") from error


def entries(path: Path, value: Any, expected: str) -> list[dict[str, Any]]:
    """The value as a list of objects, at least one.

    Args:
        path: of the file, for messages.
        value: what was read.
        expected: form of the list, for messages.

    Raises:
        ConfigError: it is something else.
    """
    if not isinstance(value, list):
        raise ConfigError(f"{path}: {_kind(value)} found, {expected} expected")
    if not value:
        raise ConfigError(f"{path}: the list is empty, {expected} expected")
    for number, entry in enumerate(value):
        if not isinstance(entry, dict):
            raise ConfigError(f"{path}: entry {number} is {_kind(entry)}, {expected} expected")
    return value


def text_of(place: str, entry: dict[str, Any], key: str, *, filled: bool = True) -> str:
    """A text of an object, without lone surrogates.

    Args:
        place: of the object, for messages: `file: entry 3`.
        entry: the object.
        key: of the text.
        filled: whether it must hold more than white space.

    Raises:
        ConfigError: it is missing, something else, or empty.
    """
    if key not in entry:
        raise ConfigError(f"{place} has no {key!r}; found {', '.join(map(repr, entry)) or 'none'}")
    value = entry[key]
    if not isinstance(value, str) or (filled and not value.strip()):
        raise ConfigError(f"{place}: {key} is {_kind(value)}, text expected")
    return clean_text(value)


def check_unique_names(path: Path, names: Sequence[str], key: str) -> None:
    """Require that no name stands twice.

    Raises:
        ConfigError: one does; names both entries.
    """
    first: dict[str, int] = {}
    for number, name in enumerate(names):
        if first.setdefault(name, number) != number:
            raise ConfigError(
                f"{path}: {key} {name!r} stands in entry {first[name]} and again in entry "
                f"{number}: keep one"
            )


def column(texts: Sequence[str]) -> pa.ChunkedArray:
    """Texts as an Arrow column."""
    starts = range(0, len(texts), BATCH_ROWS)
    chunks = [pa.array(texts[start : start + BATCH_ROWS], pa.string()) for start in starts]
    return pa.chunked_array(chunks, pa.string())


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return repr(value) if len(value) < 40 else f"{value[:40]!r}..."
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return json.dumps(value)
