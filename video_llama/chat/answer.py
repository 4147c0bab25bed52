"""One answer of a chat: from a prompt to pieces of text, with a report of how it came about."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, field

import video_llama.common.compat

import torch

from video_llama.chat.prompt import Prompt, PromptBuilder
from video_llama.chat.sharing import CachePool, FairLock, TimedLock
from video_llama.models.generation.cache import PrefixCache
from video_llama.models.generation.generate import AnswerText, Row, generate
from video_llama.models.generation.settings import GenerationSettings
from video_llama.models.video_llama import VideoLlama
from video_llama.text.templates import TEMPLATES, Template


@dataclass
class AnswerReport:
    """How an answer came about.

    Attributes:
        prompt: the text that the model saw, media as placeholders.
        num_prompt_tokens: its length, media included.
        num_reused_tokens: of these, how many the model still knew.
        num_tokens: tokens of the answer, its stop mark included.
        finished: whether the model ended it, as opposed to the limit or the user.
        stopped: whether the user ended it.
        timings: seconds until the first token ("first_token"), for all ("generate") and, within
            these, waiting for others ("wait").
        notices: what the user should know.
    """

    prompt: str = ""
    num_prompt_tokens: int = 0
    num_reused_tokens: int = 0
    num_tokens: int = 0
    finished: bool = False
    stopped: bool = False
    timings: dict[str, float] = field(default_factory=dict)
    notices: list[str] = field(default_factory=list)

    @property
    def tokens_per_second(self) -> float:
        """Speed after the first token; 0 where there is no second one."""
        seconds = self.timings.get("generate", 0.0) - self.timings.get("first_token", 0.0)
        return (self.num_tokens - 1) / seconds if self.num_tokens > 1 and seconds > 0 else 0.0


class Answerer:
    """A model with what its answers share: template, lock, and memory for keys and values.

    Args:
        cache_bytes: bound on keys and values of idle conversations, together.
    """

    def __init__(self, model: VideoLlama, cache_bytes: float) -> None:
        self.model = model
        self.template: Template = TEMPLATES.get(model.settings.template)
        self.lock = FairLock()
        self.caches = CachePool(cache_bytes)

    @property
    def context(self) -> int:
        """Positions of the model's context, which prompt and answer share."""
        context: int = self.model.language_model.config.max_position_embeddings
        return context

    @property
    def prompts(self) -> PromptBuilder:
        """Makes prompts that fit into the model's context."""
        return PromptBuilder(self.template, self.model.tokenizer, self.context)

    def row(
        self, prompt: Prompt, settings: GenerationSettings, cache: PrefixCache | None = None
    ) -> Row:
        """Make what the generation engine takes: embeddings with media in place, and stop rules."""
        model, tokenizer = self.model, self.model.tokenizer
        # Outside of the lock: looking up embeddings disturbs nobody.
        ids = torch.tensor([prompt.ids], device=model.device)
        media = torch.cat(prompt.media, dim=1) if prompt.media else None
        with torch.inference_mode():
            embeds = model.embed(ids, media)[0]
        return Row(
            inputs_embeds=embeds,
            settings=settings,
            stop_ids=self.template.stop_ids(tokenizer),
            text=AnswerText(self.template.stop_texts, tokenizer),
            cache=cache,
            marks=list(prompt.marks),
        )

    def stream(self, prompt: Prompt, row: Row, report: AnswerReport) -> Iterator[str]:
        """Yield pieces of an answer, each as soon as it is certain.

        Args:
            row: of `row`, with a cache.
        """
        assert row.cache is not None
        assert row.text is not None
        start, lock = time.perf_counter(), TimedLock(self.lock)
        report.prompt, report.num_prompt_tokens = prompt.text, len(prompt.ids)
        with self.caches.lease(row.cache):
            # The last position is always computed anew.
            # Before the engine runs, which brings the cache up to date.
            known = min(row.cache.num_common(prompt.marks), len(prompt.marks) - 1)
            report.num_reused_tokens = known
            try:
                for _ in generate(self.model.language_model, [row], lock):
                    report.num_tokens = len(row.ids)
                    report.timings.setdefault("first_token", time.perf_counter() - start)
                    if row.piece:
                        yield row.piece
                # Held back until now, because a stop mark or a character might have begun with it.
                rest = row.text.finish()
                if rest:
                    yield rest
            finally:
                # Also after a stop or an error, so that the report says how far it came.
                report.finished = row.finished
                report.stopped = row.stopped and not row.finished
                report.timings |= {"generate": time.perf_counter() - start, "wait": lock.waited}
