"""Look up what a name in a YAML stands for: one `Registry` class, one instance per kind."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from video_llama.types import ConfigError

EntryT = TypeVar("EntryT")
RegisteredT = TypeVar("RegisteredT")


class Registry(Generic[EntryT]):
    """A named table, filled by decorators at import; errors call an entry by its `kind`."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, EntryT] = {}

    def register(self, name: str) -> Callable[[RegisteredT], RegisteredT]:
        """Return a decorator that files a class or function under `name`."""

        def file(entry: RegisteredT) -> RegisteredT:
            if name in self._entries:
                raise ValueError(f"{self.kind} {name!r} is registered twice")
            self._entries[name] = entry  # type: ignore[assignment]
            return entry

        return file

    def get(self, name: str) -> EntryT:
        """Return the entry of that name; an error lists the known names and the nearest one."""
        if name in self._entries:
            return self._entries[name]
        raise ConfigError(f"unknown {self.kind} {name!r}; {suggestion(name, list(self))}")

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._entries))


def suggestion(name: str, valid: list[str]) -> str:
    """Return `did you mean 'x'? valid: a, b, x`, for the message about a misspelt name."""
    near = difflib.get_close_matches(str(name), valid, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{hint}valid: {', '.join(sorted(valid))}"
