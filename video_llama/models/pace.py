"""When an answer may use the model, and whether it is to end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class Pace:
    """What one answer asks before each step of the model. This one: always go on, never end.

    A chat with several sessions lets them take turns by it.
    """

    @property
    def stopped(self) -> bool:
        """Whether somebody has ended the answer."""
        return False

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Holds the model for one step."""
        yield

    def step_aside(self) -> None:
        """Within a turn: let others take theirs first."""
