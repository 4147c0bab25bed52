"""Compiled decoding: one token at a time through a graph that is compiled once.

Keys and values lie in tensors of fixed size, so that every step has the same shapes. On a GPU the
step is recorded as a CUDA graph, which takes Python out of it; on a CPU it becomes C++.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import threading
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, cast

import video_llama.common.compat

import torch
from torch import Tensor
from transformers import LlamaForCausalLM, StaticCache

from video_llama.models.generation.cache import PrefixCache, cache_arguments
from video_llama.types import RequestError

logger = logging.getLogger(__name__)

LEAST_ROOM = 256
"""Positions of the smallest static cache; larger ones double, because each is compiled anew."""

Step = Callable[[Tensor], Tensor | None]
"""The (1,) id of a chosen token to the (1, V) logits of the next one; None: it failed."""

_ATTRIBUTE = "_compiled_decoder"
"""Where a language model keeps its decoder, so that both are freed together."""


def decoder_of(model: LlamaForCausalLM) -> CompiledDecoder:
    """Return the one decoder of a language model, with what it has compiled so far.

    Raises:
        RequestError: nothing here compiles for the model's device.
    """
    if _ATTRIBUTE not in vars(model):
        # On a GPU Triton comes with torch. On a CPU inductor writes C++.
        compiler = os.environ.get("CXX", "g++")
        if model.device.type == "cpu" and shutil.which(compiler) is None:
            raise RequestError(
                f"compiled: needs a C++ compiler on a CPU, and there is no {compiler}; install "
                "g++, or leave compiled away"
            )
        vars(model)[_ATTRIBUTE] = CompiledDecoder(model)
    return cast(CompiledDecoder, vars(model)[_ATTRIBUTE])


class CompiledDecoder:
    """Steps of one token on a static cache.

    There is one static cache, for one answer at a time: recorded graphs know its addresses.

    Args:
        model: the language model, on one device.
        backend: of `torch.compile`.
    """

    def __init__(
        self, model: LlamaForCausalLM, backend: str | Callable[..., Any] = "inductor"
    ) -> None:
        recorded = backend == "inductor" and model.device.type == "cuda"
        self._config = model.config
        self._free = threading.Lock()
        self._room = 0
        self._cache: Any = None
        self._ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
        self._has_failed = False
        self._forward: Any = torch.compile(
            model.forward,
            backend=backend,
            dynamic=False,
            mode="reduce-overhead" if recorded else None,
        )

    @contextlib.contextmanager
    def steps(self, cache: PrefixCache, most: int) -> Iterator[Step | None]:
        """Open at most `most` steps from a prompt; afterwards `cache` holds what they added.

        The caller notes the mark of each token after its step.

        Yields:
            The step, or None while another answer is being decoded and where compiling has failed.
        """
        if self._has_failed or not self._free.acquire(blocking=False):
            yield None
            return
        try:
            self._enter(cache, most)
            yield partial(self._try_step, cache)
        finally:
            if self._cache is not None:
                self._leave(cache)
            self._free.release()

    def _enter(self, cache: PrefixCache, most: int) -> None:
        """Copy the prompt's keys and values into the static cache, made anew if it is too small."""
        states: Any = cache.states(self._config)
        length = len(cache.marks)
        # Doubled, and never made smaller: every other size would be compiled anew.
        room = max(LEAST_ROOM, self._room)
        while room < length + most:
            room *= 2
        if room > self._room:
            self._cache, self._room = StaticCache(config=self._config, max_cache_len=room), room
        # Copied, since the static cache is only lent: between answers a conversation has its own.
        for fixed, grown in zip(self._cache.layers, states.layers, strict=True):
            keys, values = grown.states()
            if not fixed.is_initialized:
                fixed.lazy_initialization(keys, values)
            fixed.keys[:, :, :length] = keys
            fixed.values[:, :, :length] = values
            fixed.cumulative_length.fill_(length)

    def _try_step(self, cache: PrefixCache, token: Tensor) -> Tensor | None:
        """Compute a step; where compiling or recording fails, give the cache back as it stands."""
        try:
            return self._step(token)
        except RuntimeError as error:  # the base of what compiling, recording and memory raise
            # What there is still answers: slower, which a line says once.
            self._has_failed = True
            reason = " ".join(str(error).split())[:200]
            logger.warning("decoding goes on without a compiled graph: %s", reason)
            self._leave(cache)
            return None

    def _step(self, token: Tensor) -> Tensor:
        # Into the same tensor: a recorded graph reads the address that it has seen.
        self._ids.copy_(token[:, None])
        output = self._forward(
            input_ids=self._ids, **cache_arguments(self._cache), logits_to_keep=1
        )
        # A recorded graph writes its next result into the same memory.
        return cast(Tensor, output.logits[:, -1].float().clone())

    def _leave(self, cache: PrefixCache) -> None:
        """Copy back what the finished steps added."""
        states: Any = cache.states(self._config)
        end = len(cache.marks)
        for fixed, grown in zip(self._cache.layers, states.layers, strict=True):
            new = slice(grown.get_seq_length(), end)
            if new.start < end:
                grown.update(fixed.keys[:, :, new], fixed.values[:, :, new])
