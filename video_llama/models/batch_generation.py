"""Several answers at once, each as if it were alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import video_llama.compat

import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from video_llama.models.decoding import GenerationSettings, TokenChooser
from video_llama.models.kv_cache import GrowingCache, keeping
from video_llama.models.pace import Pace


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
