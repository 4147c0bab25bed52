"""Range checks that every settings class shares; a leaf of the import graph.

A message starts with the field's name, so that `load_config` can put the section before it.
"""

from __future__ import annotations

import math

from video_llama.types import ConfigError


def at_least(settings: object, minimum: float, *names: str) -> None:
    """Require a lower bound of numeric settings.

    Args:
        settings: the object that holds them.
        minimum: the smallest valid value.
        names: attributes of `settings`; None passes.

    Raises:
        ConfigError: a value is smaller or not finite; names the field, the value and the bound.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and not (math.isfinite(value) and value >= minimum):
            raise ConfigError(f"{name}: {value} given, at least {minimum:g} expected")


def divisible(settings: object, whole: str, part: str) -> None:
    """Require that one setting is a multiple of another.

    Args:
        settings: the object that holds them.
        whole: attribute that is divided, such as a width.
        part: attribute that divides it, such as a number of heads.

    Raises:
        ConfigError: it leaves a rest; names both fields and both values.
    """
    total, divisor = getattr(settings, whole), getattr(settings, part)
    if total % divisor:
        raise ConfigError(f"{whole}: {total} given, a multiple of {part} ({divisor}) expected")
