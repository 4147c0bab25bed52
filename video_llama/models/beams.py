"""Beam search: several answers at once, of which the likeliest is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import video_llama.compat

import torch
from torch import Tensor
from transformers import (
    LlamaForCausalLM,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from video_llama.models.decoding import (
    Context,
    GenerationSettings,
    NoEarlyStop,
    ends_with_stop,
    prefill,
)
from video_llama.models.kv_cache import keeping
from video_llama.models.pace import Pace


@torch.inference_mode()
def search_beams(
    model: LlamaForCausalLM,
    context: Context,
    settings: GenerationSettings,
    stop_ids: Sequence[Sequence[int]],
    pace: Pace,
) -> Iterator[int]:
    """The ids of the best beam, all at once; arguments as in `generate`.

    The prompt is computed once, not once per beam, and stays in its cache.
    """
    prefill(model, context, len(context.marks) - 1, pace)
    if pace.stopped:
        return
    with pace.turn(), _Randomness(settings.seed) as randomness:
        stop = _StopSequences(stop_ids, pace, randomness)
        ids = _search(model, context, settings, stop_ids, stop)
    yield from ids


def _search(
    model: LlamaForCausalLM,
    context: Context,
    settings: GenerationSettings,
    stop_ids: Sequence[Sequence[int]],
    stop: _StopSequences,
) -> list[int]:
    embeds = context.inputs_embeds
    states = context.cache.states(model.config)
    sampling = {"temperature": float(settings.temperature), "top_p": settings.top_p, "top_k": 0}
    searcher: Any = model  # `generate` is typed for a protocol that this class does not match
    ids = searcher.generate(
        inputs_embeds=embeds,
        attention_mask=torch.ones(embeds.shape[:2], device=embeds.device),
        **keeping(states.repeated(settings.num_beams, model.config)),
        max_new_tokens=settings.max_new_tokens,
        logits_processor=LogitsProcessorList([NoEarlyStop(settings.min_new_tokens, stop_ids)]),
        num_beams=settings.num_beams,
        do_sample=settings.temperature > 0,
        repetition_penalty=float(settings.repetition_penalty),
        length_penalty=float(settings.length_penalty),
        stopping_criteria=StoppingCriteriaList([stop]),
        **(sampling if settings.temperature > 0 else {}),
    )
    best: list[int] = ids[0].tolist()
    return best


class _Randomness:
    """Random numbers of one search.

    transformers samples from torch's own generators, which everybody shares: they are exchanged
    for as long as the search has the model, and back whenever it steps aside.
    """

    def __init__(self, seed: int | None) -> None:
        self._seed = seed
        self._states: list[Tensor] = []

    def __enter__(self) -> _Randomness:
        self._states = _random_states()
        if self._seed is None:
            torch.seed()
        else:
            torch.manual_seed(self._seed)
        return self

    def __exit__(self, *_: object) -> None:
        self.exchange()

    def exchange(self) -> None:
        """Put back the others' numbers, or take out one's own again."""
        current = _random_states()
        torch.set_rng_state(self._states[0])
        if len(self._states) > 1:
            torch.cuda.set_rng_state_all(self._states[1:])
        self._states = current


def _random_states() -> list[Tensor]:
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if used else ())]


class _StopSequences(StoppingCriteria):
    """Ends each beam that closes with a stop sequence, and all of them when told to stop.

    Asked after every token, it also lets others use the model in between.
    """

    def __init__(
        self, stop_ids: Sequence[Sequence[int]], pace: Pace, randomness: _Randomness
    ) -> None:
        self._stop_ids = stop_ids
        self._pace = pace
        self._randomness = randomness

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """(beams, L) ids to (beams,) bool."""
        self._randomness.exchange()
        self._pace.step_aside()
        self._randomness.exchange()
        stopped = self._pace.stopped
        ended = [stopped or ends_with_stop(row, self._stop_ids) for row in input_ids.tolist()]
        return torch.tensor(ended, device=input_ids.device)
