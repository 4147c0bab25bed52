"""Memory of one GPU. Torch-free.

What is counted: weights as they are stored, gradients and AdamW's moments in fp32, what the
backward pass keeps, the largest temporary tensors of the frozen encoders, and a reserve. Encoders'
temporaries are gone before the language model keeps anything, so the larger of the two counts.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from video_llama.apps.estimate.batch import Item
from video_llama.apps.estimate.hardware import BYTES, RESERVED_BYTES
from video_llama.apps.estimate.phases import llm_storage, trained_parameters
from video_llama.apps.estimate.shapes import (
    PICTURE_PATCH,
    SOUND_GRID,
    Llama,
    parameters,
    trained_groups,
    vit_hidden,
    vit_tokens,
)
from video_llama.config.schema import Config
from video_llama.models.settings import ModelSettings

NUMBERS_OF_QFORMER = 16
"""Numbers that a row of a Q-Former layer keeps for the backward pass, in widths of the layer."""
LOSS_CHUNK = 1 << 25
"""Bytes of the logits that the loss looks at together; there are about three tensors of them."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    Attributes:
        weights: by part.
        gradients: of what trains.
        optimiser: AdamW's two moments.
        activations: kept for the backward pass, or keys and values of a chat.
        temporary: the largest tensors beside them.
        reserved: the device's own needs.
    """

    weights: dict[str, float]
    gradients: float = 0.0
    optimiser: float = 0.0
    activations: float = 0.0
    temporary: float = 0.0
    reserved: float = RESERVED_BYTES
    total: float = field(init=False)

    def __post_init__(self) -> None:
        rest = self.gradients + self.optimiser + self.activations + self.temporary + self.reserved
        object.__setattr__(self, "total", sum(self.weights.values()) + rest)


def weight_bytes(cfg: Config, llama: Llama, *, shards: int = 1) -> dict[str, float]:
    """Weights of every part as they lie on one GPU.

    Args:
        cfg: the configuration.
        llama: the language model.
        shards: GPUs that the LLM's layers are spread over (FSDP).
    """
    settings, counts = cfg.model, parameters(cfg.model, llama)
    trained = trained_groups(settings)
    storage = dict.fromkeys(counts, "fp32")
    if settings.freeze_vit:
        storage["vision_encoder"] = settings.vit_precision
    storage["audio_encoder"] = settings.imagebind_precision
    stored = {
        part: count * BYTES["fp32" if part in trained else storage[part]]
        for part, count in counts.items()
        if part != "language_model" and not _left_out(settings, part)
    }
    stored["language_model"] = _llm_bytes(cfg, llama, shards)
    return stored


def _left_out(settings: ModelSettings, part: str) -> bool:
    """Eyes that the training of the audio branch does without where no file is given for them."""
    eyes = ("vision_encoder", "vision_norm", "frame_qformer")
    given = settings.vit_ckpt or settings.q_former_model
    return settings.trained_branch == "audio" and part in eyes and not given


def _llm_bytes(cfg: Config, llama: Llama, shards: int) -> float:
    whole = BYTES[cfg.model.precision]
    matrices = llama.num_hidden_layers * llama.layer_matrices
    rest = (llama.parameters - matrices) * whole
    stored = matrices * BYTES[llm_storage(cfg)]
    if shards > 1:  # two layers are whole at a time: the one that computes and the next
        stored = stored / shards + 2 * llama.layer_matrices * whole
    return rest + stored


def training_memory(
    cfg: Config, llama: Llama, item: Item, *, shards: int, features_cached: bool
) -> Memory:
    """Memory of a training step.

    Args:
        cfg: with a branch that trains.
        llama: the language model.
        item: what the rows of the batch are.
        shards: GPUs that the LLM is spread over.
        features_cached: whether the encoders run.
    """
    trained = trained_parameters(cfg, llama)
    rows = cfg.run.batch_size_train
    kept = llm_kept(cfg, llama, rows * item.length) + branch_kept(cfg, item)
    logits = 3 * min(4 * rows * item.labelled * llama.vocab_size, LOSS_CHUNK)
    working = 4 * rows * item.length * llama.intermediate_size * BYTES[cfg.model.precision]
    encoding = 0.0 if features_cached else encoder_temporary(cfg, item, rows)
    return Memory(
        weights=weight_bytes(cfg, llama, shards=shards),
        gradients=4.0 * trained,
        optimiser=8.0 * trained,
        activations=kept,
        temporary=max(logits + working, encoding - kept),
    )


def llm_kept(cfg: Config, llama: Llama, tokens: float) -> float:
    """Bytes that the LLM's layers keep for the gradient of their input.

    A frozen product keeps nothing. Attention keeps its three inputs and its output, the gated MLP
    three tensors of its width, a norm its input in fp32. With recomputation only the input of each
    layer is kept, and the rest of one layer.
    """
    number = BYTES[cfg.model.precision]
    heads = 2 * llama.num_attention_heads + 2 * llama.num_attention_heads
    layer = tokens * (
        number * (heads * llama.head_dim + 3 * llama.intermediate_size) + 2 * 4 * llama.hidden_size
    )
    if not cfg.model.use_grad_checkpoint:
        return llama.num_hidden_layers * layer
    return llama.num_hidden_layers * tokens * llama.hidden_size * number + layer


def branch_kept(cfg: Config, item: Item) -> float:
    """Bytes that the branch keeps for its gradients, all in fp32."""
    settings, rows = cfg.model, cfg.run.batch_size_train
    sizes, audio = settings.qformer_config, settings.trained_branch == "audio"
    queries = settings.num_audio_query_token if audio else settings.num_video_query_token
    context = item.segments or item.frames if audio else item.frames * settings.num_query_token
    width = settings.imagebind_config.out_embed_dim if audio else sizes.hidden_size
    per_query = NUMBERS_OF_QFORMER * sizes.hidden_size + 2 * sizes.intermediate_size
    layer = queries * per_query + context * 2 * sizes.hidden_size
    return 4.0 * rows * (settings.fusion_head_layers * layer + context * width)


def encoder_temporary(cfg: Config, item: Item, rows: float) -> float:
    """Bytes of the widest point of the frozen encoders: an MLP before and after its activation."""
    settings = cfg.model
    sizes = settings.imagebind_config
    if settings.trained_branch == "audio" or not item.frames:
        width = sizes.audio_embed_dim if item.segments else sizes.vision_embed_dim
        grid = SOUND_GRID if item.segments else (settings.image_size // PICTURE_PATCH,) * 2
        tokens = 1 + grid[0] * grid[1]
        items = rows * (item.segments or item.frames)
        return items * tokens * (2 * width + 8 * width) * BYTES[settings.imagebind_precision]
    widths = 2 * settings.vit_config.embed_dim + 2 * vit_hidden(settings)
    frames = rows * item.frames
    return frames * vit_tokens(settings) * widths * BYTES[settings.vit_precision]


def chat_memory(cfg: Config, llama: Llama, item: Item, new_tokens: int) -> Memory:
    """Memory of a chat about one item.

    Args:
        cfg: the configuration.
        llama: the language model.
        item: what is asked about.
        new_tokens: of the answer.
    """
    number = BYTES[cfg.model.precision]
    keys = 2 * llama.num_hidden_layers * llama.num_key_value_heads * llama.head_dim * number
    states = keys * (item.length + new_tokens)
    prefill = item.length * 4 * llama.intermediate_size * number
    return Memory(
        weights=weight_bytes(cfg, llama),
        activations=states,
        temporary=max(encoder_temporary(cfg, item, 1), prefill),
    )
