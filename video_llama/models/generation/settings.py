"""Options of one answer: how its tokens are chosen and how long it may be. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from video_llama.types import RequestError

_WHOLE, _REAL = ("a whole number", (int,)), ("a number", (int, float))
_RANGES: dict[str, tuple[tuple[str, tuple[type, ...]], float, float]] = {
    "max_new_tokens": (_WHOLE, 1, 1_000_000),
    "min_new_tokens": (_WHOLE, 0, 1_000_000),
    "num_beams": (_WHOLE, 1, 64),
    "seed": (_WHOLE, 0, 2**63 - 1),
    "temperature": (_REAL, 0, 100),
    "top_p": (_REAL, 0, 1),
    "repetition_penalty": (_REAL, 0.01, 100),
    "length_penalty": (_REAL, -100, 100),
}


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """Options of one answer. The defaults are those of the original's chat."""

    max_new_tokens: int = 300
    """Longest answer, tokens."""
    min_new_tokens: int = 1
    """Tokens before which no stop mark is taken."""
    temperature: float = 1.0
    """Divides the logits; 0 takes the likeliest token every time."""
    top_p: float = 0.9
    """Sample only from the likeliest tokens that have this much probability together."""
    num_beams: int = 1
    """Beam search over this many answers; with a temperature above 0 the beams are sampled."""
    repetition_penalty: float = 1.0
    """Above 1 makes tokens that the answer has already had less likely."""
    length_penalty: float = 1.0
    """Above 0 favours long beams, below 0 short ones."""
    seed: int | None = None
    """Start of the random numbers; None: another answer each time."""
    compiled: bool | None = None
    """Decode through a compiled graph: the first answer waits for the compiler, the others are
    faster. None: on a GPU only. No effect on beams and on several answers at once."""

    def __post_init__(self) -> None:
        for name, ((noun, types), low, high) in _RANGES.items():
            value: Any = getattr(self, name)
            if value is None and name == "seed":
                continue
            # A bool is an int to Python, but True is no number of beams.
            valid = isinstance(value, types) and not isinstance(value, bool)
            if not valid or not low <= value <= high:
                raise RequestError(
                    f"{name}: {value!r} given, {noun} from {low:,} to {high:,} expected"
                )
        if not isinstance(self.compiled, bool | None):
            raise RequestError(f"compiled: {self.compiled!r} given, true, false or null expected")
        if self.min_new_tokens > self.max_new_tokens:
            raise RequestError(
                f"min_new_tokens: {self.min_new_tokens} given, at most max_new_tokens "
                f"({self.max_new_tokens}) expected"
            )


def generation_settings(options: dict[str, Any]) -> GenerationSettings:
    """Make typed settings from keyword options.

    Raises:
        RequestError: an option that does not exist or is out of range.
    """
    unknown = set(options) - set(GenerationSettings.__dataclass_fields__)
    if unknown:
        valid = ", ".join(GenerationSettings.__dataclass_fields__)
        raise RequestError(f"unknown option {sorted(unknown)[0]!r}; valid: {valid}")
    return GenerationSettings(**options)
