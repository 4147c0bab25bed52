"""When an answer may use the model, and whether it is to end.

Parts of answering: its settings, its prompt in a cache, and the choice of a token.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import video_llama.common.compat

import torch
from torch import Tensor
from transformers import (
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from video_llama.models.generation.cache import PrefixCache, keeping
from video_llama.types import RequestError


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


PREFILL_CHUNK = 512
"""Most positions of a prompt in one step, so that others get their turn and a stop is heeded."""


@dataclass(frozen=True, kw_only=True)
class GenerationSettings:
    """How an answer is chosen. The defaults are the original's chat."""

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
    compiled: bool = False
    """Decode through a compiled graph: the first answer waits for the compiler, the others are
    faster. No effect on beams."""

    def __post_init__(self) -> None:
        whole: dict[str, tuple[float, float]] = {
            "max_new_tokens": (1, 1_000_000),
            "min_new_tokens": (0, 1_000_000),
            "num_beams": (1, 64),
            "seed": (0, 2**63 - 1),
        }
        real: dict[str, tuple[float, float]] = {
            "temperature": (0, 100),
            "top_p": (0, 1),
            "repetition_penalty": (0.01, 100),
            "length_penalty": (-100, 100),
        }
        for name, (low, high) in (whole | real).items():
            value = getattr(self, name)
            kinds = (int,) if name in whole else (int, float)
            if value is None and name == "seed":
                continue
            if isinstance(value, bool) or not isinstance(value, kinds) or not low <= value <= high:
                noun = "a whole number" if name in whole else "a number"
                raise RequestError(
                    f"{name}: {value!r} given, {noun} from {low:,} to {high:,} expected"
                )
        if not isinstance(self.compiled, bool):
            raise RequestError(f"compiled: {self.compiled!r} given, true or false expected")
        if self.min_new_tokens > self.max_new_tokens:
            raise RequestError(
                f"min_new_tokens: {self.min_new_tokens} given, at most max_new_tokens "
                f"({self.max_new_tokens}) expected"
            )


@dataclass(frozen=True, kw_only=True)
class Context:
    """What an answer continues.

    Attributes:
        inputs_embeds: (1, L, D) of the prompt.
        marks: L marks, one per position, by which `cache` knows what it already holds.
        cache: keys and values of the conversation so far; holds the whole prompt afterwards.
    """

    inputs_embeds: Tensor
    marks: list[int]
    cache: PrefixCache

    @classmethod
    def fresh(cls, inputs_embeds: Tensor) -> Context:
        """A prompt that nothing is known of yet."""
        return cls(
            inputs_embeds=inputs_embeds, marks=[0] * inputs_embeds.shape[1], cache=PrefixCache()
        )


def prefill(model: LlamaForCausalLM, context: Context, length: int, pace: Pace) -> Tensor | None:
    """Bring the cache to the first `length` positions of a prompt, computing what it lacks.

    Args:
        model: the language model.
        context: the prompt and its cache.
        length: at least the last of these positions is computed anew.
        pace: when steps may be taken, and whether to end early.

    Returns:
        (1, V) logits of the last position; None if stopped before, or if `length` is 0.
    """
    cache, logits = context.cache, None
    start = cache.keep_common(context.marks, length - 1) if length else 0
    for begin in range(start, length, PREFILL_CHUNK):
        end = min(begin + PREFILL_CHUNK, length)
        with pace.turn():
            if pace.stopped:
                return None
            logits = step(model, cache, {"inputs_embeds": context.inputs_embeds[:, begin:end]})
        cache.marks += context.marks[begin:end]
    return logits


def step(model: LlamaForCausalLM, cache: PrefixCache, inputs: dict[str, Tensor]) -> Tensor:
    """(1, V) logits behind `inputs`, whose keys and values join the cache; note their marks."""
    states = cache.states(model.config)
    output = model(**inputs, **keeping(states), logits_to_keep=1)
    logits: Tensor = output.logits[:, -1].float()
    return logits


class TokenChooser:
    """Chooses the tokens of one answer.

    Args:
        settings: how.
        stop_ids: sequences of ids that end the answer.
        device: of the logits.

    Attributes:
        ids: chosen so far.
    """

    def __init__(
        self,
        settings: GenerationSettings,
        stop_ids: Sequence[Sequence[int]],
        device: torch.device,
    ) -> None:
        self.ids: list[int] = []
        self._settings = settings
        self._stop_ids = stop_ids
        self._random = torch.Generator(device)
        if settings.seed is None:
            self._random.seed()
        else:
            self._random.manual_seed(settings.seed)
        self._processors = logits_processors(settings, stop_ids)

    def choose(self, logits: Tensor) -> int:
        """The next token.

        Args:
            logits: (1, V) of the last position; changed in place.
        """
        said: Any = torch.tensor([self.ids], dtype=torch.long, device=logits.device)
        logits = self._processors(said, logits)
        if self._settings.temperature == 0:
            token = int(logits.argmax())
        else:
            token = int(torch.multinomial(logits.softmax(dim=-1), 1, generator=self._random))
        self.ids.append(token)
        return token

    @property
    def ended(self) -> bool:
        """Whether the answer has its stop mark or its full length."""
        full = len(self.ids) >= self._settings.max_new_tokens
        return full or ends_with_stop(self.ids, self._stop_ids)


class NoEarlyStop(LogitsProcessor):
    """Keeps a stop sequence from beginning before so many tokens.

    Args:
        num_tokens: that an answer has at least.
        stop_ids: sequences of ids that end an answer.
    """

    def __init__(self, num_tokens: int, stop_ids: Sequence[Sequence[int]]) -> None:
        self._num_tokens = num_tokens
        self._first_ids = sorted({stop[0] for stop in stop_ids})

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(beams, L) ids of the answer so far and (beams, V) scores to new scores."""
        if input_ids.shape[1] < self._num_tokens:
            scores[:, self._first_ids] = -torch.inf
        return scores


def logits_processors(
    settings: GenerationSettings, stop_ids: Sequence[Sequence[int]]
) -> LogitsProcessorList:
    """What is done to logits before a token is chosen from them, beams aside."""
    processors = LogitsProcessorList([NoEarlyStop(settings.min_new_tokens, stop_ids)])
    if settings.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(float(settings.repetition_penalty)))
    if settings.temperature > 0:
        # Below this the division would overflow; the likeliest token has won long before.
        processors.append(TemperatureLogitsWarper(max(float(settings.temperature), 1e-6)))
        processors.append(TopPLogitsWarper(settings.top_p))
    return processors


def ends_with_stop(ids: list[int], stop_ids: Sequence[Sequence[int]]) -> bool:
    """Whether an answer closes with a stop sequence."""
    return any(ids[-len(stop) :] == list(stop) for stop in stop_ids)
