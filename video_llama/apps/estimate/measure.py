"""Count the arithmetic, the memory traffic and the peak memory of each part of a model.

The parts run on PyTorch's meta device: tensors have shapes and dtypes but no data, so that a step
of a 13B model takes a second and no memory. Operations are counted with the formulas of
`torch.utils.flop_counter`; which gradients exist, and which activations are kept for them, comes
from autograd itself.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import video_llama.common.compat

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry
from transformers import DynamicCache, LlamaForCausalLM

from video_llama.apps.estimate.rows import BatchRow
from video_llama.config.schema import Config
from video_llama.models.audio_encoder import MEL_SHAPE, Modality
from video_llama.models.build import build_video_llama
from video_llama.models.generation.cache import cache_arguments
from video_llama.models.language_model import linear_cross_entropy
from video_llama.models.llama_training import recompute_activations
from video_llama.models.lora import add_adapter
from video_llama.models.video_llama import VideoLlama

BACKWARD = ", backward"
"""Ends the name of a part's backward pass."""

aten = torch.ops.aten
# Products with weights. Other operations with a formula are products of activations (attention).
_PRODUCTS = {aten.mm, aten.addmm, aten.convolution, aten.convolution_backward}
# Operations that only make metadata or uninitialised memory: no kernel runs.
_FREE = {aten._unsafe_view, aten.detach, aten.empty, aten.empty_like, aten.empty_strided}
_FREE |= {aten.new_empty, aten.new_empty_strided}
# Operations that touch as much of a table as they read or write, and not all of it.
_LOOKUPS = {aten.index, aten.gather, aten.embedding, aten.index_select}
_UPDATES = {aten.index_put_, aten.scatter_add_}


@dataclass
class Cost:
    """One pass of one part.

    Attributes:
        products: floating-point operations in products with weights.
        attention: the same in products of activations.
        traffic: bytes that all other operations read and write.
        weights: bytes of the weights that products read.
        kernels: operations that the host starts.
        shape: rows, inputs and outputs of the product with the most operations.
        precision: what that product is computed in: fp32, bf16 or fp16.
    """

    products: float = 0.0
    attention: float = 0.0
    traffic: float = 0.0
    weights: float = 0.0
    kernels: float = 0.0
    shape: tuple[int, int, int] = (1, 1, 1)
    precision: str = "fp32"

    @property
    def flops(self) -> float:
        """All floating-point operations; a multiplication and an addition are two."""
        return self.products + self.attention


@dataclass
class StepCost:
    """What a training step or an answer does.

    Attributes:
        parts: by part and pass, in the order of their first use.
        kept: bytes of activations that live from the forward to the backward pass.
        peak: the most bytes that live at a time, weights aside.
    """

    parts: dict[str, Cost] = field(default_factory=dict)
    kept: float = 0.0
    peak: float = 0.0


class OperationCounter(TorchDispatchMode):
    """Counts every operation while it is active, and the bytes of all living tensors.

    Parameters and buffers of the model do not count as such.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.step = StepCost()
        self.live = 0.0
        self._cost = Cost()
        self._weights = {_storage(tensor) for tensor in (*model.parameters(), *model.buffers())}
        self._known = set(self._weights)

    def run(
        self,
        name: str,
        forward: Callable[[Tensor], Tensor],
        inputs: Tensor,
        amp: torch.dtype | None = None,
    ) -> Tensor:
        """Run a part and count it under `name`, and its backward pass when that comes.

        `amp` is what autocast lowers the arithmetic to on a GPU; None: off.
        """
        self._begin(name)
        with _gpu_arithmetic(amp, self._weights):
            outputs = forward(inputs)
        if outputs.requires_grad:
            # The part's backward pass begins with the gradient of its outputs.
            outputs.register_hook(lambda _: self._begin(name + BACKWARD))
        return outputs

    def _begin(self, name: str) -> None:
        self._cost = self.step.parts.setdefault(name, Cost())

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        """Run an operation and count it."""
        out = func(*args, **(kwargs or {}))
        # Views and new memory live, too, but no kernel runs for them.
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        for tensor in outputs:
            self._follow(tensor)
        packet = func._overloadpacket
        if func.is_view or packet in _FREE:
            return out
        self._cost.kernels += 1
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if packet in flop_registry:
            self._count_product(packet, args, kwargs or {}, out, inputs)
        elif packet in _LOOKUPS:
            self._cost.traffic += 2 * sum(map(_bytes, outputs))
        elif packet in _UPDATES:
            self._cost.traffic += 2 * _bytes(inputs[-1])
        else:
            self._cost.traffic += sum(map(_bytes, [*inputs, *outputs]))
        return out

    def _count_product(
        self, packet: Any, args: Any, kwargs: Any, out: Any, inputs: list[Tensor]
    ) -> None:
        flops, cost = flop_registry[packet](*args, **kwargs, out_val=out), self._cost
        if packet not in _PRODUCTS:
            cost.attention += flops
            return
        # A vector (a bias) is a part of the traffic too small to count.
        cost.weights += sum(
            _bytes(tensor)
            for tensor in inputs
            if tensor.ndim > 1 and _storage(tensor) in self._weights
        )
        outputs = out if isinstance(out, Tensor) else inputs[0]
        columns = outputs.shape[1]
        rows = outputs.numel() // columns
        # The rate of a device depends on the shape: that of the largest product stands for all.
        if flops > 2 * cost.shape[0] * cost.shape[1] * cost.shape[2]:
            cost.shape = (rows, flops // (2 * rows * columns), columns)
            cost.precision = precision_name(outputs)
        cost.products += flops

    def _follow(self, tensor: Tensor) -> None:
        """Add a new tensor to what lives, until its memory is given back."""
        # Views share the storage of what they show, so that it is counted once.
        storage = tensor.untyped_storage()
        key, size = storage._cdata, storage.nbytes()
        if key in self._known:
            return
        self._known.add(key)
        self.live += size
        self.step.peak = max(self.step.peak, self.live)
        weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._known.discard(key)
        self._weights.discard(key)
        self.live -= size


@contextlib.contextmanager
def _gpu_arithmetic(amp: torch.dtype | None, weights: set[int]) -> Iterator[None]:
    """Take a GPU's fused attention for a while, and cast to `amp` as autocast does elsewhere.

    The functions are replaced, since a `TorchFunctionMode` is not active while activations are
    recomputed in a backward pass. The storages of `weights` gain those of cast ones.
    """

    def cast(value: Any, dtype: torch.dtype) -> Any:
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype is dtype:
            return value
        result = value.to(dtype)
        if _storage(value) in weights:
            weights.add(_storage(result))
        return result

    def casting(function: Callable[..., Tensor], dtype: torch.dtype) -> Callable[..., Tensor]:
        return lambda *args, **options: function(
            *(cast(value, dtype) for value in args),
            **{name: cast(value, dtype) for name, value in options.items()},
        )

    replaced: dict[str, Any] = {"scaled_dot_product_attention": _fused_attention}
    if amp is not None:
        replaced = {
            "scaled_dot_product_attention": casting(_fused_attention, amp),
            "linear": casting(F.linear, amp),
            "conv2d": casting(F.conv2d, amp),
            "layer_norm": casting(F.layer_norm, torch.float32),
        }
    original = {name: getattr(F, name) for name in replaced}
    vars(F).update(replaced)
    try:
        yield
    finally:
        vars(F).update(original)


def _fused_attention(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
    """Attend as the kernel does that keeps no scores; a mask does not change its cost."""
    if key.shape[1] != query.shape[1]:
        groups = query.shape[1] // key.shape[1]
        key, value = (states.repeat_interleave(groups, dim=1) for states in (key, value))
    attended: Tensor = aten._scaled_dot_product_flash_attention(query, key, value)[0]
    return attended


def precision_name(tensor: Tensor) -> str:
    """Return the name of a tensor's number type: fp32, bf16 or fp16."""
    return {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}[str(tensor.dtype)[6:]]


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


def _bytes(tensor: Tensor) -> int:
    """Return the bytes of a tensor in memory; an expanded one repeats what is there once."""
    return min(tensor.numel() * tensor.element_size(), tensor.untyped_storage().nbytes())


def meta_model(cfg: Config, llama: str | None = None) -> VideoLlama:
    """Build the model of a configuration in shapes; a size, "7b" or "13b", wins over its folder."""
    settings = cfg.model
    if llama is not None:
        # Sizes are taken from the name of a folder that does not exist.
        settings = replace(settings, llama_model=f"released-sizes/{llama}")
    model = build_video_llama(settings, device="meta", seed=0)
    add_adapter(model.language_model, settings)
    # Some constant buffers are made for real.
    return model.to("meta").train(settings.trained_branch is not None)


def measure_training(
    cfg: Config, model: VideoLlama, row: BatchRow, *, features_cached: bool
) -> StepCost:
    """Run the loss of one batch and its gradients, without the optimiser.

    Args:
        cfg: `run.batch_size_train` rows are in the batch.
        model: of `meta_model`.
        row: what each row consists of.
        features_cached: whether the frozen encoders' features are read instead of computed.
    """
    rows, llm = cfg.run.batch_size_train, model.language_model
    amp = torch.bfloat16 if cfg.run.amp else None
    counter = OperationCounter(model)
    with counter, _in_training(model, recomputed=cfg.model.use_grad_checkpoint):
        batch = _sounds(row, rows) if row.segments else _clips(cfg, row, rows)
        if features_cached:
            features = batch = _cached_features(cfg, model, row)
        elif cfg.model.trained_branch == "audio":
            features = _hear(model, counter, batch)
        else:
            features = _see(model, counter, batch, amp)
        branch = cfg.model.trained_branch or "video"
        media = counter.run(f"{branch}_branch", getattr(model, f"{branch}_branch"), features, amp)

        def layers(media: Tensor) -> Tensor:
            text = _empty(rows, row.text_tokens, media.shape[2], dtype=llm.dtype)
            embeddings = torch.cat([text, media.to(llm.dtype)], dim=1)
            return _hidden_states(llm, embeddings, use_cache=False).flatten(0, 1)

        def loss(hidden: Tensor) -> Tensor:
            labels = _empty(rows * row.labelled, dtype=torch.int64)
            return linear_cross_entropy(hidden, llm.lm_head.weight, labels, labels)

        # What lives between the two passes is what autograd has kept, and the batch itself.
        hidden = counter.run("language_model", layers, media)
        result = counter.run("output_layer", loss, hidden)
        counter.step.kept = counter.live
        result.backward()
    return counter.step


def measure_answer(
    cfg: Config, model: VideoLlama, row: BatchRow, *, new_tokens: int
) -> tuple[StepCost, StepCost]:
    """Run one question to its first token, and one token in the middle of the answer."""
    llm = model.language_model
    with torch.no_grad(), OperationCounter(model) as first:
        first.run("video_branch", model.video_branch, _see(model, first, _clips(cfg, row, 1)))
        if row.segments:
            assert model.audio_branch is not None
            first.run("audio_branch", model.audio_branch, _hear(model, first, _sounds(row, 1)))
        prompt = _empty(1, row.length, llm.config.hidden_size, dtype=llm.dtype)
        _decode(first, llm, prompt, DynamicCache(config=llm.config))
    # The token in the middle stands for all: reading keys and values grows with each.
    past = DynamicCache(config=llm.config)
    heads, width = llm.config.num_key_value_heads or 1, llm.config.head_dim or 1
    states = _empty(1, heads, row.length + new_tokens // 2 - 1, width, dtype=llm.dtype)
    for layer in range(llm.config.num_hidden_layers):
        past.update(states, states, layer)
    with torch.no_grad(), OperationCounter(model) as token:
        _decode(token, llm, prompt[:, :1], past)
    return first.step, token.step


def _see(
    model: VideoLlama, counter: OperationCounter, clips: Tensor, amp: torch.dtype | None = None
) -> Tensor:
    """Run the frozen half of the video branch on (B, T, 3, H, W)."""
    vision, qformer, dtype = model.vision_encoder, model.frame_qformer, model.vision_precision.dtype
    assert vision is not None
    assert qformer is not None
    # Frozen encoders compute in their own precision, whatever the autocast of the step.
    frozen, lowered = model.settings.freeze_vit, dtype if dtype is not torch.float32 else None
    patches = counter.run("vision_encoder", vision, clips.flatten(0, 1), None if frozen else amp)
    queries = counter.run("frame_qformer", qformer, patches, lowered if frozen else amp)
    return queries.view(len(clips), -1, *queries.shape[1:])


def _hear(model: VideoLlama, counter: OperationCounter, inputs: Tensor) -> Tensor:
    """Run the frozen half of the audio branch on sounds, or on clips where there is no sound."""
    encoder = model.audio_encoder
    assert encoder is not None
    modality: Modality = "audio" if inputs.shape[2] == 1 else "vision"
    return counter.run("audio_encoder", partial(encoder, modality=modality), inputs).unsqueeze(2)


def _clips(cfg: Config, row: BatchRow, rows: int) -> Tensor:
    return _empty(rows, row.frames, 3, cfg.model.image_size, cfg.model.image_size)


def _sounds(row: BatchRow, rows: int) -> Tensor:
    return _empty(rows, row.segments, 1, *MEL_SHAPE)


def _decode(
    counter: OperationCounter, llm: LlamaForCausalLM, inputs: Tensor, past: DynamicCache
) -> None:
    """Run the layers with their cache, and the logits of the last position."""
    layers = partial(_hidden_states, llm, **cache_arguments(past))
    hidden = counter.run("language_model", layers, inputs)
    counter.run("output_layer", lambda states: llm.lm_head(states[:, -1]), hidden)


def _hidden_states(llm: LlamaForCausalLM, embeddings: Tensor, **options: Any) -> Tensor:
    # transformers takes a mask of four dimensions as it is, where it would look at the values of
    # another, which are not there. The fused attention does without it.
    mask = _empty(1, 1, 1, 1, dtype=torch.bool)
    hidden: Tensor = llm.model(
        inputs_embeds=embeddings, attention_mask=mask, **options
    ).last_hidden_state
    return hidden


def _cached_features(cfg: Config, model: VideoLlama, row: BatchRow) -> Tensor:
    """Return what a feature cache holds of a batch: (B, T, Q, D)."""
    settings, rows = cfg.model, cfg.run.batch_size_train
    if settings.trained_branch == "audio":
        width = settings.imagebind_config.out_embed_dim
        return _empty(rows, row.segments or row.frames, 1, width)
    shape = (row.frames, settings.num_query_token, settings.qformer_config.hidden_size)
    return _empty(rows, *shape, dtype=model.vision_precision.dtype)


def _empty(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, device="meta", dtype=dtype)


@contextlib.contextmanager
def _in_training(model: VideoLlama, *, recomputed: bool) -> Iterator[None]:
    """Let a model compute as in training for a while: it is measured again with other batches.

    Each weight's gradient is dropped when it is complete: they are counted with the optimiser.
    """

    def drop(parameter: Tensor) -> None:
        parameter.grad = None

    handles = [p.register_post_accumulate_grad_hook(drop) for _, p in model.trainable_parameters()]
    if recomputed:
        recompute_activations(model.language_model)
    try:
        # Layers that are recomputed in the backward pass take a GPU's attention there, too.
        with _gpu_arithmetic(None, set()):
            yield
    finally:
        for handle in handles:
            handle.remove()
        for layer in model.language_model.model.layers:
            vars(layer).pop("forward", None)
