"""What a chat costs: memory, time to the first token, tokens per second."""

from __future__ import annotations

from dataclasses import dataclass, replace

from video_llama.apps.estimate.batch import Item, question
from video_llama.apps.estimate.hardware import COMPILED_LAUNCH_SECONDS, Gpu, Rates
from video_llama.apps.estimate.memory import Memory, chat_memory
from video_llama.apps.estimate.phases import (
    branch_phase,
    eyes_phases,
    imagebind_phase,
    llm_head,
    llm_layers,
)
from video_llama.apps.estimate.shapes import Llama, parameters
from video_llama.apps.estimate.timing import Phase, Seconds, seconds_of
from video_llama.config.schema import Config

NEW_TOKENS = 128
"""Assumed length of an answer."""


@dataclass(frozen=True)
class ChatPlan:
    """One question about one clip.

    Attributes:
        parameters: by part.
        flops: until the first token, by part; "next token" for each that follows.
        seconds: the same.
        memory: with an answer of `new_tokens`.
        decoding_seconds: of one core, to read the clip.
        first_token_seconds: from the decoded clip to the first token.
        tokens_per_second: eager.
        compiled_tokens_per_second: with `compiled` decoding.
        new_tokens: of the answer.
        bottleneck: of a token, eager.
        fits: whether the memory is enough.
        item: what is assumed to be asked about.
    """

    parameters: dict[str, int]
    flops: dict[str, float]
    seconds: dict[str, float]
    memory: Memory
    decoding_seconds: float
    first_token_seconds: float
    tokens_per_second: float
    compiled_tokens_per_second: float
    new_tokens: int
    bottleneck: str
    fits: bool
    item: Item


def plan_chat(
    cfg: Config,
    llama: Llama,
    gpu: Gpu,
    rates: Rates,
    *,
    text_tokens: int | None = None,
    new_tokens: int = NEW_TOKENS,
) -> ChatPlan:
    """Estimate an answer.

    Args:
        cfg: any configuration.
        llama: the language model.
        gpu: the device.
        rates: how fast it works.
        text_tokens: of the prompt beside its media; None: as assumed.
        new_tokens: of the answer.
    """
    item = question(cfg, text_tokens)
    first = list(_until_first_token(cfg, llama, item))
    context = item.length + new_tokens // 2
    token = [llm_layers(cfg, llama, 1, 1, context=context), llm_head(cfg, llama, 1, loss=False)]
    flops: dict[str, float] = {}
    seconds: dict[str, float] = {}
    for name, phase in [(p.part, p) for p in first] + [("next token", p) for p in token]:
        flops[name] = flops.get(name, 0) + phase.work.flops
        seconds[name] = seconds.get(name, 0) + seconds_of(phase, rates).total
    spent = _sum(token, rates)
    compiled = replace(rates, launch=min(rates.launch, COMPILED_LAUNCH_SECONDS))
    memory = chat_memory(cfg, llama, item, new_tokens)
    return ChatPlan(
        parameters=parameters(cfg.model, llama),
        flops=flops,
        seconds=seconds,
        memory=memory,
        decoding_seconds=item.core_seconds,
        first_token_seconds=_sum(first, rates).total,
        tokens_per_second=1 / spent.total,
        compiled_tokens_per_second=1 / _sum(token, compiled).total,
        new_tokens=new_tokens,
        bottleneck=_bottleneck(spent),
        fits=memory.total <= gpu.memory,
        item=item,
    )


def _until_first_token(cfg: Config, llama: Llama, item: Item) -> list[Phase]:
    video = branch_phase(cfg, llama, item, 1, audio=False, precision="fp32")
    phases = [*eyes_phases(cfg, item, 1), video]
    if item.segments:
        sound = branch_phase(cfg, llama, item, 1, audio=True, precision="fp32")
        phases += [imagebind_phase(cfg, item, 1), sound]
    prefill = llm_layers(cfg, llama, 1, item.length, context=item.length)
    return [*phases, prefill, llm_head(cfg, llama, 1, loss=False)]


def _sum(phases: list[Phase], rates: Rates) -> Seconds:
    spent = Seconds()
    for phase in phases:
        spent += seconds_of(phase, rates)
    return spent


def _bottleneck(spent: Seconds) -> str:
    takes = {
        "compute": spent.compute,
        "memory bandwidth": spent.memory,
        "starting operations from Python": spent.launches,
    }
    return max(takes, key=lambda name: takes[name])
