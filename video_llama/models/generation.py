"""Answering: token ids from the language model, one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import video_llama.compat

import torch
from torch import Tensor
from transformers import (
    DynamicCache,
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from video_llama.types import RequestError


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
        if self.min_new_tokens > self.max_new_tokens:
            raise RequestError(
                f"min_new_tokens: {self.min_new_tokens} given, at most max_new_tokens "
                f"({self.max_new_tokens}) expected"
            )


def generate(
    model: LlamaForCausalLM,
    inputs_embeds: Tensor,
    settings: GenerationSettings,
    stop_ids: Sequence[Sequence[int]],
) -> Iterator[int]:
    """The ids of an answer, the stop mark included.

    Beams are only known at the end and then come at once.

    Args:
        model: the language model.
        inputs_embeds: (1, L, D) of the prompt.
        settings: how tokens are chosen.
        stop_ids: sequences of ids that end an answer.

    Yields:
        Token ids, as soon as they are chosen.
    """
    if settings.num_beams > 1:
        return _beams(model, inputs_embeds, settings, stop_ids)
    return _one_by_one(model, inputs_embeds, settings, stop_ids)


@torch.inference_mode()
def _one_by_one(
    model: LlamaForCausalLM,
    inputs_embeds: Tensor,
    settings: GenerationSettings,
    stop_ids: Sequence[Sequence[int]],
) -> Iterator[int]:
    device = model.lm_head.weight.device
    random = torch.Generator(device)
    if settings.seed is None:
        random.seed()
    else:
        random.manual_seed(settings.seed)
    processors = _logits_processors(settings, stop_ids)
    cache = DynamicCache(config=model.config)
    step: dict[str, Tensor] = {"inputs_embeds": inputs_embeds}
    ids: list[int] = []
    while len(ids) < settings.max_new_tokens:
        output = model(**step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        logits = output.logits[:, -1].float()
        said: Any = torch.tensor([ids], dtype=torch.long, device=logits.device)
        logits = processors(said, logits)
        ids.append(_choose(logits, settings, random))
        yield ids[-1]
        if _ends(ids, stop_ids):
            return
        step = {"input_ids": torch.tensor([ids[-1:]], device=device)}


class _NoEarlyStop(LogitsProcessor):
    """Keeps a stop sequence from beginning before so many tokens."""

    def __init__(self, num_tokens: int, stop_ids: Sequence[Sequence[int]]) -> None:
        self._num_tokens = num_tokens
        self._first_ids = sorted({stop[0] for stop in stop_ids})

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(beams, L) ids of the answer so far and (beams, V) scores to new scores."""
        if input_ids.shape[1] < self._num_tokens:
            scores[:, self._first_ids] = -torch.inf
        return scores


def _logits_processors(
    settings: GenerationSettings, stop_ids: Sequence[Sequence[int]]
) -> LogitsProcessorList:
    processors = LogitsProcessorList([_NoEarlyStop(settings.min_new_tokens, stop_ids)])
    if settings.repetition_penalty != 1:
        processors.append(RepetitionPenaltyLogitsProcessor(settings.repetition_penalty))
    if settings.temperature > 0:
        # Below this the division would overflow; the likeliest token has won long before.
        processors.append(TemperatureLogitsWarper(max(float(settings.temperature), 1e-6)))
        processors.append(TopPLogitsWarper(settings.top_p))
    return processors


def _choose(logits: Tensor, settings: GenerationSettings, random: torch.Generator) -> int:
    if settings.temperature == 0:
        return int(logits.argmax())
    return int(torch.multinomial(logits.softmax(dim=-1), 1, generator=random))


def _ends(ids: list[int], stop_ids: Sequence[Sequence[int]]) -> bool:
    return any(ids[-len(stop) :] == list(stop) for stop in stop_ids)


class _StopSequences(StoppingCriteria):
    """Ends each beam that closes with a stop sequence."""

    def __init__(self, stop_ids: Sequence[Sequence[int]]) -> None:
        self._stop_ids = stop_ids

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """(beams, L) ids to (beams,) bool."""
        ended = [_ends(row, self._stop_ids) for row in input_ids.tolist()]
        return torch.tensor(ended, device=input_ids.device)


@torch.inference_mode()
def _beams(
    model: LlamaForCausalLM,
    inputs_embeds: Tensor,
    settings: GenerationSettings,
    stop_ids: Sequence[Sequence[int]],
) -> Iterator[int]:
    sampling = {"temperature": float(settings.temperature), "top_p": settings.top_p, "top_k": 0}
    searcher: Any = model  # `generate` is typed for a protocol that this class does not match
    with torch.random.fork_rng():
        if settings.seed is not None:
            torch.manual_seed(settings.seed)
        ids = searcher.generate(
            inputs_embeds=inputs_embeds,
            attention_mask=torch.ones(inputs_embeds.shape[:2], device=inputs_embeds.device),
            max_new_tokens=settings.max_new_tokens,
            logits_processor=LogitsProcessorList([_NoEarlyStop(settings.min_new_tokens, stop_ids)]),
            num_beams=settings.num_beams,
            do_sample=settings.temperature > 0,
            repetition_penalty=float(settings.repetition_penalty),
            length_penalty=float(settings.length_penalty),
            stopping_criteria=StoppingCriteriaList([_StopSequences(stop_ids)]),
            **(sampling if settings.temperature > 0 else {}),
        )
    yield from ids[0].tolist()
