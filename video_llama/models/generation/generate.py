"""Beam search: several answers at once, of which the likeliest is given.

Answering: token ids from the language model, one by one.

Several answers at once, each as if it were alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import video_llama.common.compat

import torch
from torch import Tensor
from transformers import (
    LlamaForCausalLM,
    LogitsProcessorList,
    StoppingCriteria,
    StoppingCriteriaList,
)

from video_llama.models.generation.cache import GrowingCache, PrefixCache, keeping
from video_llama.models.generation.compiled import Step, decoder_of
from video_llama.models.generation.decoding import (
    Context,
    GenerationSettings,
    NoEarlyStop,
    Pace,
    TokenChooser,
    ends_with_stop,
    prefill,
    step,
)


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


__all__ = ["Context", "GenerationSettings", "generate"]


def generate(
    model: LlamaForCausalLM,
    prompt: Tensor | Context,
    settings: GenerationSettings,
    stop_ids: Sequence[Sequence[int]],
    pace: Pace | None = None,
) -> Iterator[int]:
    """The ids of an answer, the stop mark included.

    Beams are only known at the end and then come at once.

    Args:
        model: the language model.
        prompt: (1, L, D) embeddings, or these with what is known of them already.
        settings: how tokens are chosen.
        stop_ids: sequences of ids that end an answer.
        pace: when steps may be taken, and whether to end early.

    Yields:
        Token ids, as soon as they are chosen.
    """
    context = prompt if isinstance(prompt, Context) else Context.fresh(prompt)
    if settings.num_beams > 1:
        return search_beams(model, context, settings, stop_ids, pace or Pace())
    return _one_by_one(model, context, settings, stop_ids, pace or Pace())


@torch.inference_mode()
def _one_by_one(
    model: LlamaForCausalLM,
    context: Context,
    settings: GenerationSettings,
    stop_ids: Sequence[Sequence[int]],
    pace: Pace,
) -> Iterator[int]:
    cache, device = context.cache, model.lm_head.weight.device
    chooser = TokenChooser(settings, stop_ids, device)
    # The last position is always computed: its logits choose the first token.
    logits = prefill(model, context, len(context.marks), pace)
    if logits is None:
        return
    with _steps(model, cache, settings) as compiled:
        while True:
            token = chooser.choose(logits)
            yield token
            if chooser.ended or pace.stopped:
                return
            with pace.turn():
                if compiled is not None:
                    logits = compiled(token)
                else:
                    ids = torch.tensor([[token]], device=device)
                    logits = step(model, cache, {"input_ids": ids})
            cache.marks.append(token)


def _steps(
    model: LlamaForCausalLM, cache: PrefixCache, settings: GenerationSettings
) -> AbstractContextManager[Step | None]:
    """Compiled steps where they are wanted and free."""
    if not settings.compiled:
        return nullcontext()
    return decoder_of(model).steps(cache, settings.max_new_tokens)


@torch.inference_mode()
def generate_batch(
    model: LlamaForCausalLM,
    prompts: Sequence[Tensor],
    settings: Sequence[GenerationSettings],
    stop_ids: Sequence[Sequence[int]],
    ended: Callable[[int, int], bool] = lambda row, token: False,
    pace: Pace | None = None,
) -> list[list[int]]:
    """The ids of one answer per prompt, their stop marks included.

    Shorter prompts are padded on the left, where no other position looks. A row that has ended
    leaves the batch, and each row has its own options and random numbers.

    Args:
        model: the language model.
        prompts: (L, D) embeddings, of any lengths.
        settings: of each answer, without beams.
        stop_ids: sequences of ids that end an answer.
        ended: told the row and the token of each step, says whether the row ends with it.
        pace: when steps may be taken.

    Returns:
        Token ids of each row.

    Raises:
        ValueError: settings with beams.
    """
    if any(chosen.num_beams > 1 for chosen in settings):
        raise ValueError("a batch has no beams; use `generate` for an answer with beams")
    device = model.lm_head.weight.device
    choosers = [TokenChooser(chosen, stop_ids, device) for chosen in settings]
    embeds, mask = _left_padded(prompts)
    positions = (mask.long().cumsum(dim=1) - 1).clamp(min=0)
    cache, running = GrowingCache(model.config), list(range(len(prompts)))
    inputs, pace = {"inputs_embeds": embeds}, pace or Pace()
    while running:
        with pace.turn():
            logits = _logits(model, cache, mask, positions, inputs)
        tokens = [choosers[row].choose(logits[i : i + 1]) for i, row in enumerate(running)]
        over = [
            ended(row, token) or choosers[row].ended
            for row, token in zip(running, tokens, strict=True)
        ]
        going = [i for i, is_over in enumerate(over) if not is_over]
        kept = torch.tensor(going, dtype=torch.long, device=mask.device)
        if len(going) < len(running):
            cache.keep_rows(kept)
            mask, positions = mask[kept], positions[kept]
        running = [running[i] for i in going]
        mask = torch.cat([mask, mask.new_ones(len(going), 1)], dim=1)
        positions = positions[:, -1:] + 1
        inputs = {"input_ids": torch.tensor([[tokens[i]] for i in going], device=device)}
    return [chooser.ids for chooser in choosers]


def _logits(
    model: LlamaForCausalLM,
    cache: GrowingCache,
    mask: Tensor,
    positions: Tensor,
    inputs: dict[str, Tensor],
) -> Tensor:
    """(B, V) of the last position of each row."""
    output = model(
        **inputs,
        attention_mask=mask,
        position_ids=positions,
        **keeping(cache),
        logits_to_keep=1,
    )
    logits: Tensor = output.logits[:, -1].float()
    return logits


def _left_padded(prompts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """(B, L, D) embeddings, zero where padded, and a (B, L) mask."""
    longest = max(map(len, prompts), default=0)
    embeds = torch.stack(
        [torch.nn.functional.pad(prompt, (0, 0, longest - len(prompt), 0)) for prompt in prompts]
    )
    lengths = torch.tensor([len(prompt) for prompt in prompts], device=embeds.device)
    mask = torch.arange(longest, device=embeds.device) >= longest - lengths[:, None]
    return embeds, mask
