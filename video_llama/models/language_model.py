"""The frozen LLaMA: loading in a precision or quantised, embedding, and the training loss."""

from __future__ import annotations

import logging
import pickle
import sys
from pathlib import Path
from typing import Any, cast

import video_llama.common.compat

import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from transformers import BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding
from transformers.utils.logging import disable_progress_bar

from video_llama.models.llama_training import allows_packing, packed_hidden_states
from video_llama.models.precision import Precision, cast_floating
from video_llama.models.settings import ModelSettings
from video_llama.models.weights.checks import RELEASED_SIZES, exported_weights, llama_values
from video_llama.models.weights.report import ValueCheck
from video_llama.types import IGNORE_INDEX, ConfigError, WeightsError

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 24
"""Size of the fp32 logits that exist at a time: enough rows to keep a GPU busy."""

_SHAPE_ERRORS = (
    *(StrictDataclassError, ValueError, TypeError, KeyError, AttributeError, AssertionError),
    *(ArithmeticError, RuntimeError),
)
"""What transformers and torch raise for values that no model can have."""
_LOAD_ERRORS = (OSError, RuntimeError, ValueError, SafetensorError, pickle.UnpicklingError)
"""What transformers raises for missing, damaged and unsuitable weights."""
_NF4_BLOCK = 64
"""Weights that share a scale; widths have to be multiples of it."""


def read_config(folder: Path, *, assume_released: bool = False) -> LlamaConfig:
    """Read the `config.json` of a LLaMA folder.

    Args:
        folder: `model.llama_model`.
        assume_released: where there is no such folder, take the released 7B sizes (13B where the
            folder's name says so) instead of failing: shapes need no file.

    Raises:
        ConfigError: no folder, no config.json, not JSON, not a LLaMA, or impossible sizes.
    """
    path = folder / "config.json"
    if assume_released and not path.exists():
        size = "13b" if "13b" in folder.name.lower() else "7b"
        logger.info("%s does not exist: assuming the sizes of LLaMA-%s", path, size)
        return LlamaConfig(**RELEASED_SIZES[size], max_position_embeddings=4096)
    # transformers accepts many values that only fail when the model runs, so one layer is run.
    values = llama_values(folder)
    try:
        config = LlamaConfig(**values)
        _try_shapes(config)
    except _SHAPE_ERRORS as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise ConfigError(
            f"model.llama_model: {path} describes no LLaMA that can be built: {reason}"
        ) from error
    return config


def _try_shapes(config: LlamaConfig) -> None:
    """Run one layer without memory, which uses every size of the configuration."""
    probe = LlamaConfig(**{**config.to_dict(), "num_hidden_layers": 1})
    with torch.device("meta"):
        LlamaForCausalLM(probe)(inputs_embeds=torch.zeros(1, 4, probe.hidden_size))


def has_weights(folder: Path) -> bool:
    """Whether the folder holds weight files, as opposed to a configuration alone."""
    # The weights of an exported folder are those of the whole model: `model.ckpt` brings them.
    if exported_weights(folder):
        return False
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def build_language_model(settings: ModelSettings, device: torch.device) -> LlamaForCausalLM:
    """Build the language model, frozen, in its precision, on `device`.

    Weights are read shard by shard into place, quantised while loading where `quantization` says
    so, or spread over all GPUs where `llm_device_map` is "auto". A folder without weights gives a
    model on the meta device, which a whole-model checkpoint may fill.

    Args:
        settings: `llama_model`, `precision`, `quantization` and `llm_device_map` are read.
        device: where to put it; on "meta" only shapes are made and no weight file is opened.

    Raises:
        ConfigError: the folder is missing something, or bitsandbytes is.
        WeightsError: the weights do not fit config.json, are not finite, or all zero.
    """
    folder = Path(settings.llama_model)
    config = read_config(folder, assume_released=device.type == "meta")
    if settings.quantization == "nf4":
        _check_blocks(folder, config)
    config._attn_implementation = "sdpa"
    precision = Precision.named(settings.precision, device.type)
    if device.type == "meta" or not has_weights(folder):
        return _frozen(_without_weights(config, precision))
    return _frozen(_from_folder(folder, config, settings, device))


def _without_weights(config: LlamaConfig, precision: Precision) -> LlamaForCausalLM:
    # Built without memory: a whole-model checkpoint fills it, or random values do.
    with torch.device("meta"):
        model = LlamaForCausalLM(config)
    cast_floating(model, precision.dtype)
    # Its frequencies are computed, not loaded, so they are made for real.
    model.model.rotary_emb = LlamaRotaryEmbedding(config)
    return model


def _from_folder(
    folder: Path, config: LlamaConfig, settings: ModelSettings, device: torch.device
) -> LlamaForCausalLM:
    precision = Precision.named(settings.precision, device.type)
    return _loaded(
        folder,
        config=config,
        dtype=precision.dtype,
        # With a placement, shards are read tensor by tensor to where they belong: no second copy.
        device_map={"": device} if settings.llm_device_map == "single" else "auto",
        quantization_config=_quantization(settings.quantization, precision),
    )


def load_plain_llama(folder: Path) -> LlamaForCausalLM:
    """Load a LLaMA on the host, in the precision that its `config.json` names.

    Raises:
        ConfigError: the folder is missing something, or the weights are quantised.
        WeightsError: they do not fit config.json, are not finite, or all zero.
    """
    config = read_config(folder)
    if getattr(config, "quantization_config", None):
        raise ConfigError(f"{folder} is quantised; give the plain LLaMA that it was made of")
    return _loaded(folder, config=config, dtype="auto")


def _loaded(folder: Path, **options: Any) -> LlamaForCausalLM:
    if not sys.stderr.isatty():  # a bar is noise in a log and in what a program reads
        disable_progress_bar()
    try:
        loaded: Any = LlamaForCausalLM.from_pretrained(
            folder,
            **options,
            attn_implementation="sdpa",
            local_files_only=True,
            output_loading_info=True,
        )
    except _LOAD_ERRORS as error:
        raise WeightsError(f"model.llama_model: {folder} does not load: {error}") from error
    # transformers only warns about missing tensors, and leaves random values in their place.
    model, info = loaded
    missing = sorted(info["missing_keys"])
    if missing:
        raise WeightsError(
            f"model.llama_model: {folder} lacks {len(missing)} tensors that its config.json asks "
            f"for, first {missing[0]}; the download is incomplete or config.json is of another size"
        )
    _check_values(model, f"model.llama_model: {folder}")
    return cast(LlamaForCausalLM, model)


def _check_values(model: nn.Module, where: str) -> None:
    check = ValueCheck(where)
    for name, parameter in model.named_parameters():
        if parameter.is_floating_point() and not parameter.is_meta:  # quantised ones are integers
            check.add(f"llama_model.{name}", parameter)
    check.finish()


def _quantization(name: str, precision: Precision) -> BitsAndBytesConfig | None:
    if name == "none":
        return None
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"model.quantization: {name} needs bitsandbytes; pip install 'video-llama[quant]'"
        ) from error
    if name == "int8":
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_compute_dtype=precision.dtype,
        bnb_4bit_use_double_quant=True,
    )


def _check_blocks(folder: Path, config: LlamaConfig) -> None:
    for name in ("hidden_size", "intermediate_size"):
        if getattr(config, name) % _NF4_BLOCK:
            raise ConfigError(
                f"model.quantization: nf4 needs widths that are multiples of {_NF4_BLOCK}, but "
                f"{folder / 'config.json'} has {name} {getattr(config, name)}; take int8 or none"
            )


def _frozen(model: LlamaForCausalLM) -> LlamaForCausalLM:
    model.requires_grad_(False)
    model.eval()
    # The released folders set sampling values here that would change every greedy call.
    model.generation_config.update(
        do_sample=False, temperature=None, top_p=None, top_k=None, max_length=None
    )
    return model


def causal_loss(
    model: LlamaForCausalLM, inputs_embeds: Tensor, labels: Tensor, attention_mask: Tensor
) -> tuple[Tensor, int]:
    """Compute the mean cross entropy of the next token over the labelled positions.

    Logits are computed only where there is a label, some at a time: with 32,000 tokens in the
    vocabulary they would otherwise be the largest tensor of a training step. After `allow_packing`
    the layers see no padding.

    Args:
        inputs_embeds: (B, L, D).
        labels: (B, L) int64, IGNORE_INDEX where there is no loss; label i is predicted at i - 1.
        attention_mask: (B, L), zero or False where padded.

    Returns:
        The scalar loss and the number of labelled tokens.

    Raises:
        ValueError: no position has a label.
    """
    # Position i predicts token i + 1. The labels move, so that the hidden states need no copy.
    following = F.pad(labels[:, 1:], (0, 1), value=IGNORE_INDEX)
    # The frozen LLM computes in the precision it is stored in, whatever the caller's autocast.
    with torch.autocast(inputs_embeds.device.type, enabled=False):
        if allows_packing(model):
            kept = attention_mask.bool()
            hidden = packed_hidden_states(model, inputs_embeds, kept)
            following = following[kept]
        else:
            # Causal attention never reads padding at the end: without a mask SDPA is fastest.
            right_padded = bool((attention_mask.long().diff(dim=1) <= 0).all())
            mask = None if right_padded else attention_mask.to(inputs_embeds.device)
            hidden = model.model(
                inputs_embeds=inputs_embeds, attention_mask=mask, use_cache=False
            ).last_hidden_state.flatten(0, 1)
        # Labels are looked at where they lie: on a CPU nobody waits for the GPU.
        targets = following.flatten()
        (rows,) = (targets != IGNORE_INDEX).nonzero(as_tuple=True)
        if len(rows) == 0:
            raise ValueError(
                "no position of the batch has a label; were the answers truncated away? "
                "(max_txt_len for captions, max_length for conversations)"
            )
        wanted, places = (
            tensor.to(hidden.device, non_blocking=True) for tensor in (targets[rows], rows)
        )
        loss = linear_cross_entropy(hidden, model.lm_head.weight, wanted, places)
    return loss, len(rows)


def embed_tokens(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Embed (..., L) token ids to (..., L, D) on the device of the embedding table."""
    # Where the LLM is spread over devices, its table may be on another one than the ids.
    table = model.model.embed_tokens
    return cast(Tensor, table(ids.to(table.weight.device)))


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor) -> Tensor:
    """Compute the mean cross entropy of `hidden @ weight.T` at some rows, in chunks of logits.

    The gradient is computed together with the loss, while the logits of a chunk exist. So nothing
    of the size of the vocabulary outlives its chunk, nothing is computed twice, and no copy of the
    hidden states is kept.

    Args:
        hidden: (N, D).
        weight: (V, D) of the output layer.
        targets: (R,) int64 classes.
        rows: (R,) int64, the rows of `hidden` that predict them.

    Returns:
        The scalar loss, fp32.
    """
    apply: Any = _LinearCrossEntropy.apply
    return cast(Tensor, apply(hidden, weight, targets, rows, torch.is_grad_enabled()))


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, rows: Tensor, trains: bool
    ) -> Tensor:
        # The gradients are made here, in the forward, and only scaled in the backward: only now are
        # the logits there.
        ctx.gradients = [
            torch.zeros_like(tensor) if trains and tensor.requires_grad else None
            for tensor in (hidden, weight)
        ]
        of_hidden, of_weight = ctx.gradients
        size = max(1, CHUNK_BYTES // (4 * len(weight)))
        total = torch.zeros((), device=hidden.device)
        for chunk, wanted in zip(rows.split(size), targets[:, None].split(size), strict=True):
            total += _add_chunk(hidden[chunk], weight, wanted, (chunk, of_hidden), of_weight)
        ctx.scale = 1 / len(rows)
        return total / len(rows)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        gradients, ctx.gradients = ctx.gradients, []
        factor = upstream * ctx.scale
        scaled = (g if g is None else g.mul_(factor) for g in gradients)
        return *scaled, None, None, None


def _add_chunk(
    inputs: Tensor,
    weight: Tensor,
    wanted: Tensor,
    of_hidden: tuple[Tensor, Tensor | None],
    of_weight: Tensor | None,
) -> Tensor:
    """Return the summed loss of some rows; add their gradients to `of_hidden` and `of_weight`.

    A function of its own, so that its logits are freed before those of the next chunk are made.
    """
    # Softmax by hand and in place: one tensor of logits becomes the gradient.
    logits = F.linear(inputs, weight).float()
    picked = logits.gather(1, wanted)
    largest = logits.amax(dim=1, keepdim=True)
    sums = logits.sub_(largest).exp_().sum(dim=1, keepdim=True)
    loss = (sums.log() + largest - picked).sum()
    rows, gradients = of_hidden
    if gradients is None and of_weight is None:
        return loss
    gradient = logits.div_(sums).scatter_add_(1, wanted, -torch.ones_like(picked)).to(weight.dtype)
    if gradients is not None:
        gradients[rows] = gradient @ weight
    if of_weight is not None:
        of_weight.addmm_(gradient.T, inputs)
    return loss
