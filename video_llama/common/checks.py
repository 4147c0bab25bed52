"""Check ranges of settings, for every settings class.

A message starts with the field's name, so that `load_config` can put the section before it.
"""

from __future__ import annotations

import math

from video_llama.types import ConfigError

MAX_LAYERS = 512
MAX_WIDTH = 65_536
MAX_SIDE = 4096
"""Of a picture, pixels."""
MAX_TOKENS = 32_768
"""Of a text."""
MAX_POSITIONS = 4096
"""Queries, frames and sound segments that a model has a place for."""
MAX_MEDIA = 1024
"""Frames or sound segments of one file."""
MAX_BATCH = 65_536
MAX_WORKERS = 1024
MAX_STEPS = 10**9
MAX_SEED = 2**62
"""Leaves room in 64 bits for what is added to it."""


def at_least(settings: object, minimum: float, *names: str) -> None:
    """Require numeric attributes of `settings` to be finite and at least `minimum`, or None."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not minimum <= value < math.inf:  # so for NaN too
            finite = "" if math.isfinite(value) else "a finite number of "
            raise ConfigError(f"{name}: {value} given, {finite}at least {minimum:g} expected")


def at_most(settings: object, maximum: float, *names: str) -> None:
    """Require numeric attributes of `settings` to be at most `maximum`, or None."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and value > maximum:
            raise ConfigError(f"{name}: {value} given, at most {maximum} expected")


def divisible(settings: object, whole: str, part: str) -> None:
    """Require that one attribute (a width) is a multiple of another (a number of heads)."""
    total, divisor = getattr(settings, whole), getattr(settings, part)
    if total % divisor:
        raise ConfigError(f"{whole}: {total} given, a multiple of {part} ({divisor}) expected")
