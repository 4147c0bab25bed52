"""Keys and values of a language model: buffers that grow in place, and what a conversation keeps.

A `GrowingCache` holds the rows of one batch while they are decoded. A `PrefixCache` belongs to one
conversation and knows, position by position, which prompts its keys and values fit.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import video_llama.common.compat

from torch import Tensor
from transformers import Cache, DynamicCache, LlamaForCausalLM, PreTrainedConfig
from transformers.cache_utils import DynamicLayer

_BLOCK = 128
"""Positions by which the room for keys and values grows."""

_KEYWORD = next(
    name
    for name in ("cache", "past_key_values")
    if name in inspect.signature(LlamaForCausalLM.forward).parameters
)
"""Transformers 5.24 gave the argument a new name; its old one is to go in 5.40."""


def cache_arguments(cache: Cache) -> dict[str, Any]:
    """Return the arguments that make a model read and extend a cache, for `model(**...)`."""
    return {_KEYWORD: cache, "use_cache": True}


class GrowingLayer(DynamicLayer):
    """One layer's keys and values in buffers with room to spare.

    A token is written into its place; transformers' own layer copies everything for each token.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.length = 0

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        """Append (B, heads, L, D) keys and values; returns all of them."""
        # Not concatenated: that would copy the whole conversation for each token.
        end = self.length + key_states.shape[-2]
        self.keys = self._written(self.keys, key_states, end)
        self.values = self._written(self.values, value_states, end)
        self.is_initialized = True
        self.length = end
        return self.states()

    def _written(self, buffer: Tensor | None, states: Tensor, end: int) -> Tensor:
        if buffer is None or buffer.shape[-2] < end:
            # A quarter more than needed: a long answer is copied a few times, not at each block.
            room = -(-(end + end // 4) // _BLOCK) * _BLOCK
            # Empty, not zero: what lies behind `length` is never read.
            grown = states.new_empty((*states.shape[:2], room, states.shape[-1]))
            if buffer is not None:
                grown[..., : self.length, :] = buffer[..., : self.length, :]
            buffer = grown
        buffer[..., self.length : end, :] = states
        return buffer

    def states(self) -> tuple[Tensor, Tensor]:
        """(B, heads, L, D) keys and values of the positions that are filled, at least one."""
        assert self.keys is not None
        assert self.values is not None
        return self.keys[..., : self.length, :], self.values[..., : self.length, :]

    def get_seq_length(self) -> int:
        """How many positions are filled."""
        return self.length

    def keep_rows(self, rows: Tensor) -> None:
        """Keep the (R,) rows of the batch that `rows` lists."""
        keys, values = self.states()
        # A copy without spare room. Rows leave seldom, and the next token makes room again.
        self.keys = keys.index_select(0, rows.to(keys.device))
        self.values = values.index_select(0, rows.to(values.device))


class GrowingCache(Cache):
    """Keys and values of all layers of a language model."""

    def __init__(self, config: PreTrainedConfig) -> None:
        self._config = config
        self._layers = [GrowingLayer() for _ in range(config.num_hidden_layers)]
        super().__init__(layers=[*self._layers])

    def truncate(self, length: int) -> None:
        """Forget all but the first `length` positions."""
        for layer in self._layers:
            layer.length = min(layer.length, length)

    def keep_rows(self, rows: Tensor) -> None:
        """Keep the (R,) rows of the batch that `rows` lists."""
        for layer in self._layers:
            layer.keep_rows(rows)

    def load(self, caches: Sequence[PrefixCache | None], pads: Sequence[int], end: int) -> None:
        """Fill the empty cache of a batch with what the caches of its rows know.

        A row has `pads` positions of padding on its left. `end` positions are filled, padding
        included; no cache knows less, and None stands where the padding reaches so far.
        """
        # Rows whose prompt begins behind `end` have nothing to give to this part.
        known = {row: cache for row, cache in enumerate(caches) if cache and pads[row] < end}
        for index, layer in enumerate(self._layers if known else ()):
            rows = {row: cache.layer(index).states() for row, cache in known.items()}
            joint = []
            for which, states in enumerate(next(iter(rows.values()))):  # keys, then values
                empty = states.new_zeros(len(caches), states.shape[1], end, states.shape[-1])
                for row, own in rows.items():
                    empty[row, :, pads[row] :] = own[which][0, :, : end - pads[row]]
                joint.append(empty)
            layer.update(*joint)

    def row(self, index: int, begin: int, end: int) -> GrowingCache:
        """Copy some positions of one row."""
        copy = GrowingCache(self._config)
        for mine, theirs in zip(self._layers, copy._layers, strict=True):
            theirs.update(*(s[index : index + 1, :, begin:end] for s in mine.states()))
        return copy

    def repeated(self, times: int) -> DynamicCache:
        """Copy the cache with every row `times` times, for beams."""
        # Beams are reordered at each step, which transformers does with a cache of its own kind.
        copy = DynamicCache(config=self._config)
        for index, layer in enumerate(self._layers):
            if layer.length:
                keys, values = (s.repeat_interleave(times, dim=0) for s in layer.states())
                copy.update(keys, values, index)
        return copy

    @property
    def num_bytes(self) -> int:
        """Memory of the buffers."""
        tensors = [t for layer in self._layers for t in (layer.keys, layer.values)]
        return sum(tensor.nbytes for tensor in tensors if tensor is not None)


class PrefixCache:
    """The keys and values of one conversation, and what each position stands for.

    Positions are compared by their marks (token ids, and whatever tells one medium from another),
    never by their floats. The marks are noted only after a step of the model has ended: a step that
    failed half-way leaves nothing behind that would be used.

    Attributes:
        marks: one per position that is filled.
    """

    def __init__(self) -> None:
        self.marks: list[int] = []
        self._states: GrowingCache | None = None

    def states(self, config: PreTrainedConfig) -> GrowingCache:
        """Return what a step reads and extends: as many positions as there are marks."""
        if self._states is None:
            self._states = GrowingCache(config)
        # Positions without a mark are of a step that failed, or of text that has changed.
        self._states.truncate(len(self.marks))
        return self._states

    def layer(self, index: int) -> GrowingLayer:
        """Return one layer; the cache must hold something."""
        assert self._states is not None
        return self._states._layers[index]

    def store(self, batch: GrowingCache, row: int, pad: int, marks: list[int]) -> None:
        """Remember one row of a batch instead of what was known.

        `marks` are those of the positions behind `pad` positions of padding on the left.
        """
        self.clear()
        self._states = batch.row(row, pad, pad + len(marks))
        self.marks = list(marks)

    def keep_common(self, marks: Sequence[int], most: int) -> int:
        """Forget what differs from a new sequence; at most `most` positions stay.

        Returns:
            How many positions stay.
        """
        # The keys behind the first difference were computed from what is no longer there.
        del self.marks[min(self.num_common(marks), most) :]
        return len(self.marks)

    def num_common(self, marks: Sequence[int]) -> int:
        """How many positions at the beginning of a new sequence are known."""
        pairs = enumerate(zip(self.marks, marks, strict=False))
        shorter = min(len(self.marks), len(marks))
        return next((index for index, (old, new) in pairs if old != new), shorter)

    def clear(self) -> None:
        """Forget everything and free its memory."""
        self.marks = []
        self._states = None

    @property
    def num_bytes(self) -> int:
        """Memory of the keys and values."""
        return 0 if self._states is None else self._states.num_bytes
