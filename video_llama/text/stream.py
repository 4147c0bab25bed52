"""Showing an answer while it is still being written."""

from __future__ import annotations

from collections.abc import Sequence


class AnswerStream:
    """Text of a model to text for the user, as early as it is certain.

    Leading and trailing white space is dropped, and nothing is shown that may be the beginning of a
    stop mark.

    Args:
        stop_texts: of the template.

    Attributes:
        stopped: whether a stop mark was met; what follows it is dropped.
    """

    def __init__(self, stop_texts: Sequence[str]) -> None:
        self._stop_texts = stop_texts
        self._waiting = ""
        self._started = False
        self.stopped = False

    def push(self, text: str) -> str:
        """The text that may be shown now that `text` has arrived."""
        if self.stopped:
            return ""
        self._waiting += text
        found = [at for stop in self._stop_texts if (at := self._waiting.find(stop)) >= 0]
        if found:
            self.stopped = True
            self._waiting = self._waiting[: min(found)]
            return self._show(len(self._waiting.rstrip()))
        return self._show(len(self._waiting) - self._doubtful())

    def finish(self) -> str:
        """The text that waited for a stop mark which never came."""
        return "" if self.stopped else self._show(len(self._waiting.rstrip()))

    def _doubtful(self) -> int:
        """How many characters at the end may yet turn out to be a stop mark, or trailing space."""
        text = self._waiting
        longest = max(
            (
                size
                for stop in self._stop_texts
                for size in range(len(stop))
                if text.endswith(stop[:size])
            ),
            default=0,
        )
        return len(text) - len(text[: len(text) - longest].rstrip())

    def _show(self, size: int) -> str:
        shown, self._waiting = self._waiting[:size], self._waiting[size:]
        if not self._started:
            shown = shown.lstrip()
            self._started = bool(shown)
        return shown
