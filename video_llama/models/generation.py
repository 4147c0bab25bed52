"""Answering: token ids from the language model, one by one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import video_llama.compat

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from video_llama.models.beams import search_beams
from video_llama.models.compiled_decoding import Step, decoder_of
from video_llama.models.decoding import Context, GenerationSettings, TokenChooser, prefill, step
from video_llama.models.kv_cache import PrefixCache
from video_llama.models.pace import Pace

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
