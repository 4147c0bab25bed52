"""Annotated items: what they hold, where their media lie, and the JSON lists that name them.

Nothing heavy is imported here, so that the settings of a data set can stand beside its reader.
"""

from __future__ import annotations

import codecs
import json
import re
import stat
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from video_llama.text.tokenizer import clean_text
from video_llama.types import ConfigError, MediaError

if TYPE_CHECKING:
    from video_llama.datasets.sampling import Integers

Turns = list[tuple[str, str]]
"""Questions and answers."""

MAX_LENGTH = 65535
"""Length from which on texts count as equally long, bytes: two bytes per item hold it."""


MISSING = ("", "nan", "none", "null", "n/a")
"""What pandas, Python, SQL and people write, in any case, where a caption is missing."""

MAX_PLACES = 5
"""Missing captions whose places an error names."""


class MediaSource(Protocol):
    """Where the media of an item are."""

    def open(self) -> AbstractContextManager[Path]:
        """Give a path under which the media can be read inside the block.

        Raises:
            MediaError: they are not there.
        """

    def identity(self) -> str | None:
        """Return what changes when the content does, without reading it; None without media."""


@dataclass(frozen=True)
class MediaFile:
    """A media file of its own.

    Attributes:
        path: where it is.
        folder: that it must lie in: an annotation of others names no other files of this machine.
    """

    path: Path
    folder: Path

    def open(self) -> AbstractContextManager[Path]:
        """See `MediaSource`."""
        if not self._is_inside:
            raise MediaError(self.path, f"its name leads out of {self.folder}")
        return nullcontext(self.path)

    def identity(self) -> str | None:
        """See `MediaSource`."""
        return file_identity(self.path) if self._is_inside else None

    @property
    def _is_inside(self) -> bool:
        inside = self.path.is_relative_to(self.folder)
        # By the name alone: a link inside the folder was made by its owner and may lead anywhere.
        return inside and ".." not in self.path.relative_to(self.folder).parts


def file_identity(path: Path) -> str | None:
    """Return path, size and time of change of a file; None if there is none."""
    try:
        state = path.stat()
    except OSError:
        return None
    return f"{path.absolute()}|{state.st_size}|{state.st_mtime_ns}"


@dataclass(frozen=True)
class Record:
    """An annotated item. Its id is the path that the annotation gives, or a key.

    It has either a caption or turns, as annotated; `path` says in messages where its media are.
    """

    item_id: str
    media: MediaSource
    path: Path
    caption: str = ""
    turns: tuple[tuple[str, str], ...] = ()


class Records(Protocol):
    """The annotated items of a data set. Workers share its memory."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Record:
        """Return the item of that number.

        Raises:
            MediaError: its place in a shard cannot be read.
        """

    def locate(self, index: int) -> tuple[str, Path]:
        """Return id and path of an item, also of one that cannot be read."""

    def lengths(self, indices: Integers) -> Integers:
        """Return the sizes of the texts of items, in bytes."""


def pack_turns(turns: Turns) -> str:
    """Write a conversation as one text, to be kept in a column."""
    return json.dumps(turns, ensure_ascii=False, separators=(",", ":"))


def unpack_turns(text: str) -> tuple[tuple[str, str], ...]:
    """Return the conversation of `pack_turns`."""
    return tuple((question, answer) for question, answer in json.loads(text))


def refuse_device(path: Path) -> None:
    """Refuse what is neither a file nor a folder: reading it might never end.

    What cannot be looked at is left to whoever opens it.

    Raises:
        ConfigError: it is a pipe, a socket or a device.
    """
    # A pipe keeps whoever opens it waiting, and /dev/zero never ends.
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ConfigError(f"{path}: a pipe or a device given, an annotation file expected")


def read_json(path: Path) -> Any:
    """Read the value of a JSON file.

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
    except UnicodeDecodeError as error:
        raise ConfigError(not_utf8(path, "JSON") or f"{path}: not JSON in UTF-8") from error
    except ValueError as error:  # a number with thousands of digits
        raise ConfigError(f"{path}: not JSON in UTF-8: {error}") from error


def not_utf8(path: Path, what: str) -> str:
    """Say in which line a file stops being UTF-8, and what it may be instead; "" if it is UTF-8."""
    # Line by line, as only then the place is known: the codec says an offset in bytes.
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if number == 1 and line.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
                return f"{path}:1: not {what} in UTF-8: it is UTF-16; save it as UTF-8"
            try:
                line.decode()
            except UnicodeDecodeError as error:
                byte, column = f"{line[error.start]:#04x}", error.start + 1
                return (
                    f"{path}:{number}: not {what} in UTF-8: byte {byte} in column {column}; "
                    f"{likely_encoding(line)}"
                )
    return ""


def likely_encoding(line: bytes) -> str:
    """Say which encoding a line that is not UTF-8 has in all likelihood."""
    # GBK writes a character as two bytes, and most of them are high: text in it has runs of even
    # length, where accented letters of an 8-bit encoding stand alone.
    runs = re.findall(rb"[\x80-\xff]+", line)
    even = sum(len(run) % 2 == 0 for run in runs)
    try:
        line.decode("gb18030")
    except UnicodeDecodeError:
        even = 0
    if 2 * even > len(runs):
        return "it looks like GBK: convert it with iconv -f GB18030 -t UTF-8"
    return "save it as UTF-8 (iconv -f its-encoding -t UTF-8 converts it)"


def entries(path: Path, value: Any, expected: str) -> list[dict[str, Any]]:
    """Return the value of a file as a list of objects, at least one, of the expected form.

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
    """Return a text of an object, without lone surrogates.

    Place (`file: entry 3`) is for messages. White space is no text, unless `filled` is false.

    Raises:
        ConfigError: it is missing, something else, or empty.
    """
    # What there is instead tells a misspelt key from another format.
    if key not in entry:
        raise ConfigError(f"{place} has no {key!r}; found {', '.join(map(repr, entry)) or 'none'}")
    value = entry[key]
    if not isinstance(value, str) or (filled and not value.strip()):
        raise ConfigError(f"{place}: {key} is {_kind(value)}, text expected")
    return clean_text(value)


def captions_of(path: Path, found: Sequence[dict[str, Any]]) -> list[str]:
    """Return the captions of all objects of a list.

    Raises:
        ConfigError: some are missing, which counts them, or one is no text.
    """
    # All of them before the first error: who mends a file wants to know how much there is to mend.
    missing = [n for n, entry in enumerate(found) if is_missing(entry.get("caption", True))]
    if missing:
        shown = [_kind(found[number]["caption"]) for number in missing]
        raise ConfigError(
            f"{path}: entry {missing[0]}: caption is {shown[0]}, text expected "
            f"({count_missing('entries', shown, missing)})"
        )
    return [
        text_of(f"{path}: entry {number}", entry, "caption") for number, entry in enumerate(found)
    ]


def is_missing(value: object) -> bool:
    """Return whether a caption is empty, or what programs write for an empty one."""
    if isinstance(value, str):
        return value.strip().lower() in MISSING
    return value is None or value != value  # NaN is the only value that differs from itself


def count_missing(what: str, values: Sequence[str], numbers: Sequence[int]) -> str:
    """Describe missing captions for the message of an error: how many of which value, and in which
    rows or entries.
    """
    counts = ", ".join(f"{value} {count} x" for value, count in Counter(values).most_common())
    places = ", ".join(map(str, numbers[:MAX_PLACES])) + (", ..." if numbers[MAX_PLACES:] else "")
    return f"{len(values)} such {what}: {places}; {counts}; fill them or take them out"


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


def _kind(value: Any) -> str:
    if isinstance(value, str):
        return repr(value) if len(value) < 40 else f"{value[:40]!r}..."
    if isinstance(value, dict | list):
        return "an object" if isinstance(value, dict) else "a list"
    return json.dumps(value)
