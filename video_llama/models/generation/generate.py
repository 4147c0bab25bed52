"""The generation engine: prompts in, tokens out. It knows no conversation and no user interface.

`generate` decodes any number of rows together. Each row has its own settings, stop rules, random
numbers and, where it is kept for later, its own cache of keys and values. A streamed answer is a
batch of one row. Beam search is left to transformers.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, cast

import video_llama.common.compat

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import (
    LlamaForCausalLM,
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    RepetitionPenaltyLogitsProcessor,
    StoppingCriteria,
    StoppingCriteriaList,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from video_llama.models.generation.cache import GrowingCache, PrefixCache, cache_arguments
from video_llama.models.generation.compiled import Step, decoder_of
from video_llama.models.generation.settings import GenerationSettings
from video_llama.text.stream import AnswerStream, StreamDecoder

PREFILL_CHUNK = 512
"""Most positions of a prompt in one step, so that others get their turn and a stop is heeded."""


class ModelLock:
    """Permission to run one step of the model. This one is always granted.

    A chat with several sessions replaces it by a lock that serves them in turn.
    """

    @contextmanager
    def turn(self) -> Iterator[None]:
        """Hold the model for one step."""
        yield

    def yield_turn(self) -> None:
        """Let others run first. The caller holds a turn before and after."""


class AnswerText:
    """Token ids of an answer to the text that is shown, up to the first stop text."""

    def __init__(self, stop_texts: Sequence[str], tokenizer: Any) -> None:
        self._stream = AnswerStream(stop_texts)
        self._decoder = StreamDecoder(tokenizer)
        self._pieces: list[str] = []

    def push(self, token: int) -> str:
        """Return the text that this token makes certain; often empty."""
        return self._keep(self._stream.push(self._decoder.push(token)))

    def finish(self) -> str:
        """Return the text that was still held back."""
        return self._keep(self._stream.push(self._decoder.finish()) + self._stream.finish())

    def _keep(self, piece: str) -> str:
        self._pieces.append(piece)
        return piece

    @property
    def stopped(self) -> bool:
        """Whether a stop text was met."""
        return self._stream.stopped

    @property
    def text(self) -> str:
        """The whole answer so far, without white space around it."""
        return "".join(self._pieces).strip()


@dataclass(eq=False, kw_only=True)
class Row:
    """One answer of a batch: what it continues, how, and what has come of it.

    An answer ends at the first of: a stop sequence, a stop text, its full length, `stop()`.

    Attributes:
        inputs_embeds: (L, D) of the prompt.
        settings: how tokens are chosen.
        stop_ids: sequences of ids that end the answer.
        text: collects the answer as text and adds its stop texts; None: only ids count.
        cache: keys and values to start from and to leave behind; None: nothing is kept.
        marks: L marks, by which `cache` knows the positions that it holds already.
        ids: the tokens so far, a stop mark included.
        piece: text that became certain with the last token.
        stopped: whether `stop` was called.
    """

    inputs_embeds: Tensor
    settings: GenerationSettings
    stop_ids: Sequence[Sequence[int]]
    text: AnswerText | None = None
    cache: PrefixCache | None = None
    marks: list[int] = field(default_factory=list)
    ids: list[int] = field(default_factory=list)
    piece: str = ""
    stopped: bool = False

    def take(self, token: int) -> None:
        """Append a token."""
        self.ids.append(token)
        if self.text is not None:
            self.piece = self.text.push(token)

    def stop(self) -> None:
        """End the answer at its next token. Any thread may call this."""
        self.stopped = True

    @property
    def finished(self) -> bool:
        """Whether the model ended the answer itself."""
        by_text = self.text is not None and self.text.stopped
        return by_text or ends_with_stop(self.ids, self.stop_ids)

    @property
    def ended(self) -> bool:
        """Whether no further token is to come."""
        return self.stopped or len(self.ids) >= self.settings.max_new_tokens or self.finished


def ends_with_stop(ids: list[int], stop_ids: Sequence[Sequence[int]]) -> bool:
    """Return whether an answer closes with a stop sequence."""
    return any(ids[-len(stop) :] == list(stop) for stop in stop_ids)


def generate(
    model: LlamaForCausalLM, rows: Sequence[Row], lock: ModelLock | None = None
) -> Iterator[Row]:
    """Answer prompts, all of them in step; `lock` is held for each step of the model.

    Yields:
        The row that has got a token, once for each token. Beams are known at their end only and
        then come all at once.
    """
    lock = lock or ModelLock()
    # Beams keep several answers per row alive and cannot stand in a batch with others.
    plain = [row for row in rows if row.settings.num_beams == 1]
    if plain:
        yield from _decode(model, plain, lock)
    for row in rows:
        if row.settings.num_beams > 1:
            yield from _search_beams(model, row, lock)


@torch.inference_mode()
def _decode(model: LlamaForCausalLM, rows: list[Row], lock: ModelLock) -> Iterator[Row]:
    """Choose token after token for all rows, until the last one has ended."""
    batch = _Batch(model, rows)
    samplers = [_Sampler(row, model.lm_head.weight.device) for row in rows]
    # All prompts in one go: their positions are independent, so that the GPU is filled.
    logits = batch.prefill(lock, batch.length)
    if logits is None:
        return
    with _compiled_steps(model, rows, batch.own_cache) as compiled:
        while True:
            # One transfer from the device for all rows: the loop waits for it once per step.
            chosen = torch.cat([s.choose(logits[i : i + 1]) for i, s in enumerate(samplers)])
            # The ids also stay on the device: the next step reads them there.
            for row, token in zip(rows, chosen.tolist(), strict=True):
                row.take(token)
            # The caller reads the pieces now, and may stop rows before the next step is paid for.
            yield from rows
            running = [index for index, row in enumerate(rows) if not row.ended]
            # A row that has ended costs nothing more: the batch gets smaller at once.
            if len(running) < len(rows):
                batch.keep(running)
                if not running:
                    return
                rows, samplers = [rows[i] for i in running], [samplers[i] for i in running]
                chosen = chosen[torch.tensor(running, device=chosen.device)]
            # Held for one step: with several conversations each waits for one token of the others.
            with lock.turn():
                logits = compiled(chosen) if compiled else None
                # Without a compiler, or where it has failed, the step is computed eagerly.
                if logits is None:
                    compiled, logits = None, batch.step(chosen)
            batch.note_tokens()


def _compiled_steps(
    model: LlamaForCausalLM, rows: list[Row], cache: PrefixCache | None
) -> AbstractContextManager[Step | None]:
    """Open compiled steps where a lone row wants them and nobody else is using them."""
    wanted = rows[0].settings.compiled
    if wanted is None:  # a GPU waits for Python in eager decoding; a CPU hardly does
        wanted = model.device.type == "cuda"
    if cache is None or not wanted:
        return nullcontext()
    return decoder_of(model).steps(cache, rows[0].settings.max_new_tokens)


class _Batch:
    """Rows that are decoded in step, padded on the left so that their last positions meet.

    A lone row works on its own cache in place. Several rows share one cache for as long as they
    run; what their own caches know is copied into it, and what it has learnt is copied back.

    Attributes:
        length: L, positions of the longest row so far.
        own_cache: of a lone row; None where there are several.
    """

    def __init__(self, model: LlamaForCausalLM, rows: Sequence[Row]) -> None:
        self._model, self._rows = model, list(rows)
        # On the left, because the last position of each row chooses its next token.
        self.length = max(len(row.inputs_embeds) for row in rows)
        self._pads = [self.length - len(row.inputs_embeds) for row in rows]
        self.own_cache = (rows[0].cache or PrefixCache()) if len(rows) == 1 else None
        for row in rows:
            row.marks = row.marks or [0] * len(row.inputs_embeds)
        self._place_pads()

    def _place_pads(self) -> None:
        """Bring the padding to the device; without any, no mask is made."""
        # A batch of equal lengths, and a lone row, go without a mask: the attention is then
        # the fast causal kernel.
        device = self._rows[0].inputs_embeds.device
        self._starts = torch.tensor(self._pads, device=device)[:, None] if any(self._pads) else None

    def prefill(self, lock: ModelLock, length: int) -> Tensor | None:
        """Compute the first `length` positions of the prompts, apart from what is known.

        Returns:
            (R, V) logits of the last position; None if stopped before, or if `length` is 0.
        """
        begin, logits = self._open_cache(length), None
        # What the padding holds does not matter, since no other position looks at it.
        padded = zip(self._rows, self._pads, strict=True)
        embeds = torch.stack([pad(row.inputs_embeds, (0, 0, left, 0)) for row, left in padded])
        for start in range(begin, length, PREFILL_CHUNK):
            end = min(start + PREFILL_CHUNK, length)
            with lock.turn():
                # A long prompt takes seconds on a CPU. Who has left must not hold up the others.
                if all(row.stopped for row in self._rows):
                    return None
                logits = self._forward({"inputs_embeds": embeds[:, start:end]}, start, end)
            # Noted after the step. If it failed half-way the positions count as never computed.
            if self.own_cache is not None:
                self.own_cache.marks += self._rows[0].marks[start:end]
        return logits

    def _open_cache(self, length: int) -> int:
        """Make the cache that all rows share; return how many of its positions are known."""
        # The last position is always computed: its logits choose the first token.
        # Columns of the batch, not positions of a row: the padding counts as known.
        caches = [self.own_cache or row.cache for row in self._rows]
        known = [
            left + (cache.keep_common(row.marks, max(0, length - 1 - left)) if cache else 0)
            for row, cache, left in zip(self._rows, caches, self._pads, strict=True)
        ]
        if self.own_cache is not None:
            self._states = self.own_cache.states(self._model.config)
        else:
            self._states = GrowingCache(self._model.config)
            self._states.load(caches, self._pads, min(known))
        return min(known)

    def step(self, ids: Tensor) -> Tensor:
        """(R,) ids of the last tokens to (R, V) logits of the next ones."""
        return self._forward({"input_ids": ids[:, None]}, self.length, self.length + 1)

    def note_tokens(self) -> None:
        """Count the last tokens as computed, once the step that read them has ended."""
        self.length += 1
        if self.own_cache is not None:
            self.own_cache.marks.append(self._rows[0].ids[-1])

    def _forward(self, inputs: dict[str, Tensor], begin: int, end: int) -> Tensor:
        # Logits of the last position only: all of them take 128 MB per thousand positions.
        cache = cache_arguments(self._states)
        output = self._model(**inputs, **self._padding(begin, end), **cache, logits_to_keep=1)
        return cast(Tensor, output.logits[:, -1].float())

    def _padding(self, begin: int, end: int) -> dict[str, Tensor]:
        """Make the mask and the positions of the columns from `begin` to `end`."""
        if self._starts is None:
            return {}
        # Computed on the device from the few numbers that are there. Nothing is sent to it.
        keys = torch.arange(end, device=self._starts.device)
        queries = keys[begin:]
        seen = (keys <= queries[:, None]) & (keys >= self._starts[:, :, None])
        # A padded query that sees nothing would be NaN: it sees itself.
        seen = seen | (keys == queries[:, None])
        # In four dimensions transformers takes the mask as it is. For one in two dimensions it
        # asks the device at each step whether anything is padded.
        positions = (queries - self._starts).clamp(min=0)
        return {"attention_mask": seen[:, None], "position_ids": positions}

    def keep(self, indices: list[int]) -> None:
        """Let all rows but these leave the batch, and bring their own caches up to date."""
        # The caches of those who leave are filled while their rows are still in the batch.
        for index in set(range(len(self._rows))) - set(indices):
            row = self._rows[index]
            if self.own_cache is None and row.cache is not None:
                # The last token of an answer has not been through the model.
                marks = [*row.marks, *row.ids[:-1]]
                row.cache.store(self._states, index, self._pads[index], marks)
        if indices:
            self._rows = [self._rows[index] for index in indices]
            self._pads = [self._pads[index] for index in indices]
            self._states.keep_rows(torch.tensor(indices))
            self._place_pads()


class _Sampler:
    """Chooses the tokens of one row."""

    def __init__(self, row: Row, device: torch.device) -> None:
        settings = row.settings
        # Kept on the device, where the repetition penalty reads it.
        self._said = torch.empty(1, 0, dtype=torch.long, device=device)
        # Each row has a generator: a seed gives the same answer whoever else is in the batch.
        self._random = torch.Generator(device)
        _seed(self._random, settings.seed)
        self._is_greedy = settings.temperature == 0
        # The order is transformers': penalties act on logits before temperature and top-p.
        self._processors = LogitsProcessorList([_no_early_stop(row, device)])
        if settings.repetition_penalty != 1:
            penalty = RepetitionPenaltyLogitsProcessor(float(settings.repetition_penalty))
            self._processors.append(penalty)
        if not self._is_greedy:
            # Below this the division would overflow; the likeliest token has won long before.
            temperature = max(float(settings.temperature), 1e-6)
            self._processors.append(TemperatureLogitsWarper(temperature))
            self._processors.append(TopPLogitsWarper(settings.top_p))

    def choose(self, logits: Tensor) -> Tensor:
        """(1, V) logits to the (1,) id of the next token, without waiting for the device."""
        said: Any = self._said
        logits = self._processors(said, logits)
        if self._is_greedy:
            chosen = logits.argmax(dim=-1)
        else:
            probabilities = logits.softmax(dim=-1)
            chosen = torch.multinomial(probabilities, 1, generator=self._random)[:, 0]
        self._said = torch.cat([self._said, chosen[:, None]], dim=1)
        return chosen


def _no_early_stop(row: Row, device: torch.device) -> LogitsProcessor:
    """Keep a stop sequence from beginning before `min_new_tokens`."""
    # Only the first id of each sequence is forbidden: without it the rest is ordinary text.
    first_ids = sorted({stop[0] for stop in row.stop_ids})
    return MinNewTokensLengthLogitsProcessor(
        0, row.settings.min_new_tokens, first_ids, device=str(device)
    )


@torch.inference_mode()
def _search_beams(model: LlamaForCausalLM, row: Row, lock: ModelLock) -> Iterator[Row]:
    """Take the tokens of the likeliest beam.

    The prompt is computed once, not once per beam, and stays in the row's cache.
    """
    batch = _Batch(model, [row])
    # All but the last position. transformers computes that one itself, for its first logits.
    batch.prefill(lock, batch.length - 1)
    if row.stopped:
        return
    with lock.turn(), _RandomState(row.settings.seed) as random:
        ids = _beam_ids(model, row, batch.own_cache, _BeamEnd(row, lock, random))
    # The text may have met its stop in another tokenisation than that of `stop_ids`.
    for token in ids:
        row.take(token)
        yield row
        if row.ended:
            return


def _beam_ids(
    model: LlamaForCausalLM, row: Row, cache: PrefixCache | None, end: _BeamEnd
) -> list[int]:
    settings, embeds = row.settings, row.inputs_embeds[None]
    assert cache is not None, "a lone row has a cache"
    states = cache.states(model.config)
    no_early_stop = _no_early_stop(row, model.lm_head.weight.device)
    sampling = {"temperature": float(settings.temperature), "top_p": settings.top_p, "top_k": 0}
    searcher: Any = model  # `generate` is typed for a protocol that this class does not match
    ids = searcher.generate(
        inputs_embeds=embeds,
        # Longer than the one position that is new: so transformers knows what the cache holds.
        attention_mask=torch.ones(embeds.shape[:2], device=embeds.device),
        **cache_arguments(states.repeated(settings.num_beams)),
        max_new_tokens=settings.max_new_tokens,
        logits_processor=LogitsProcessorList([no_early_stop]),
        num_beams=settings.num_beams,
        do_sample=settings.temperature > 0,
        repetition_penalty=float(settings.repetition_penalty),
        length_penalty=float(settings.length_penalty),
        stopping_criteria=StoppingCriteriaList([end]),
        **(sampling if settings.temperature > 0 else {}),
    )
    return cast(list[int], ids[0].tolist())


class _RandomState:
    """Random numbers of one search.

    transformers samples from torch's own generators, which everybody shares: their states are
    exchanged for as long as the search has the model, and back whenever it yields its turn.
    """

    def __init__(self, seed: int | None) -> None:
        self._seed = seed
        self._states: list[Tensor] = []

    def __enter__(self) -> _RandomState:
        # Also without a seed: a search must not use up random numbers of the program around it.
        self._states = _random_states()
        _seed(torch, self._seed)
        return self

    def __exit__(self, *_: object) -> None:
        self.exchange()

    def exchange(self) -> None:
        """Put back the states of the others, or take out one's own again."""
        current = _random_states()
        torch.set_rng_state(self._states[0])
        if len(self._states) > 1:
            torch.cuda.set_rng_state_all(self._states[1:])
        self._states = current


def _seed(generator: Any, seed: int | None) -> None:
    """Seed a generator, or torch's own (the module); None draws a seed from the system."""
    if seed is None:
        generator.seed()
    else:
        generator.manual_seed(seed)


def _random_states() -> list[Tensor]:
    used = torch.cuda.is_available() and torch.cuda.is_initialized()
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if used else ())]


class _BeamEnd(StoppingCriteria):
    """Ends each beam that closes with a stop sequence, and all of them when the row is stopped.

    transformers calls it after every token, where it also lets others use the model.
    """

    def __init__(self, row: Row, lock: ModelLock, random: _RandomState) -> None:
        self._row = row
        self._lock = lock
        self._random = random

    def __call__(self, input_ids: Tensor, scores: Any, **kwargs: Any) -> Tensor:
        """(beams, L) ids to (beams,) bool."""
        # While others run they must find their own random state, as before the search.
        self._random.exchange()
        self._lock.yield_turn()
        self._random.exchange()
        row = self._row
        ended = [row.stopped or ends_with_stop(ids, row.stop_ids) for ids in input_ids.tolist()]
        return torch.tensor(ended, device=input_ids.device)
