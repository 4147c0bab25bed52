"""One answer: how it is streamed, and what is reported of it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import video_llama.common.compat

import torch
from torch import Tensor

from video_llama.chat.prompt import Prompt
from video_llama.chat.sharing import SharedPace
from video_llama.models.generation.cache import PrefixCache
from video_llama.models.generation.generate import Context, GenerationSettings, generate
from video_llama.models.video_llama import VideoLlama
from video_llama.text.stream import AnswerStream, StreamDecoder
from video_llama.text.templates import Template
from video_llama.types import RequestError


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


def generation_settings(options: dict[str, Any]) -> GenerationSettings:
    """Typed settings from keyword options.

    Raises:
        RequestError: an option that does not exist or is out of range.
    """
    unknown = set(options) - set(GenerationSettings.__dataclass_fields__)
    if unknown:
        valid = ", ".join(GenerationSettings.__dataclass_fields__)
        raise RequestError(f"unknown option {sorted(unknown)[0]!r}; valid: {valid}")
    return GenerationSettings(**options)


class AnswerText:
    """Token ids of an answer to the text that is shown.

    Args:
        template: whose stop marks are not shown.
        tokenizer: of the language model.
    """

    def __init__(self, template: Template, tokenizer: Any) -> None:
        self._stream = AnswerStream(template.stop_texts)
        self._decoder = StreamDecoder(tokenizer)
        self._eos = tokenizer.eos_token_id
        self._said: list[str] = []
        self.finished = False

    def push(self, token: int) -> str:
        """The text that this token makes certain; often empty."""
        piece = self._stream.push(self._decoder.push(token))
        self.finished = token == self._eos or self._stream.stopped
        self._said.append(piece)
        return piece

    def finish(self) -> str:
        """The text that was still waiting."""
        rest = self._stream.push(self._decoder.finish()) + self._stream.finish()
        self.finished = self.finished or self._stream.stopped
        self._said.append(rest)
        return rest

    @property
    def said(self) -> str:
        """The whole answer so far."""
        return "".join(self._said).strip()


def embed_prompt(model: VideoLlama, ids: list[int], media: Sequence[Tensor]) -> Tensor:
    """(1, L, D) embeddings of a prompt with its media, (1, N, D) each, in their places."""
    row = torch.tensor([ids], device=model.device)
    with torch.inference_mode():
        return model.embed(row, torch.cat(list(media), dim=1) if media else None)


def stream_answer(
    model: VideoLlama,
    template: Template,
    prompt: Prompt,
    cache: PrefixCache,
    settings: GenerationSettings,
    pace: SharedPace,
    text: AnswerText,
    report: AnswerReport,
) -> Iterator[str]:
    """Pieces of an answer, each as soon as it is certain.

    Args:
        model: answers.
        template: of the prompt.
        prompt: what is asked.
        cache: of the conversation.
        settings: how tokens are chosen.
        pace: when the model may be used.
        text: collects the answer.
        report: filled on the way.
    """
    start = time.perf_counter()
    report.prompt, report.num_prompt_tokens = prompt.text, len(prompt.ids)
    # The last position is always computed anew.
    report.num_reused_tokens = min(cache.num_common(prompt.marks), len(prompt.marks) - 1)
    embeds = embed_prompt(model, prompt.ids, prompt.media)
    context = Context(inputs_embeds=embeds, marks=prompt.marks, cache=cache)
    stop_ids = template.stop_ids(model.tokenizer)
    tokens = generate(model.language_model, context, settings, stop_ids, pace)
    try:
        for token in tokens:
            report.num_tokens += 1
            report.timings.setdefault("first_token", time.perf_counter() - start)
            piece = text.push(token)
            if piece:
                yield piece
            if text.finished:
                break
        rest = text.finish()
        if rest:
            yield rest
    finally:
        report.finished = text.finished
        report.stopped = pace.stopped and not text.finished
        report.timings |= {"generate": time.perf_counter() - start, "wait": pace.waited}
