"""Range checks name the setting, what was given and what is expected."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from video_llama.common.checks import at_least, at_most, divisible
from video_llama.types import ConfigError

SETTINGS = SimpleNamespace(depth=3, width=10, rate=float("nan"), steps=float("inf"), fps=None)


def test_what_is_in_range_passes() -> None:
    at_least(SETTINGS, 3, "depth", "width", "fps")
    at_most(SETTINGS, 10, "depth", "width", "fps")
    divisible(SimpleNamespace(width=12, heads=3), "width", "heads")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("depth", "depth: 3 given, at least 4 expected"),
        ("rate", "rate: nan given, a finite number of at least 4 expected"),
        ("steps", "steps: inf given, a finite number of at least 4 expected"),
    ],
)
def test_too_small_and_endless_values_are_named(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        at_least(SETTINGS, 4, name)


def test_too_large_values_and_rests_are_named() -> None:
    with pytest.raises(ConfigError, match=r"^width: 10 given, at most 9 expected$"):
        at_most(SETTINGS, 9, "depth", "width")
    with pytest.raises(ConfigError, match=r"^width: 10 given, a multiple of depth \(3\) expected$"):
        divisible(SETTINGS, "width", "depth")
