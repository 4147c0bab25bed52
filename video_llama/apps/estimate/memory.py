"""Memory of one GPU: weights as they are stored, and what a step or an answer adds to them."""

from __future__ import annotations

from dataclasses import dataclass, field

from video_llama.apps.estimate.hardware import ASSUMED, BYTES
from video_llama.apps.estimate.measure import StepCost, precision_name
from video_llama.apps.estimate.rows import BatchRow
from video_llama.config.schema import Config
from video_llama.models.build import VISION_GROUPS
from video_llama.models.lora import ADAPTER
from video_llama.models.settings import ModelSettings
from video_llama.models.video_llama import VideoLlama
from video_llama.models.weights.names import GROUPS, group_of, original_name
from video_llama.runners.optim import LORA

GRADIENT_BYTES, OPTIMISER_BYTES = 4, 8
"""Of each trained parameter: its gradient and AdamW's two moments, in fp32."""


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU.

    Attributes:
        weights: by part.
        activations: kept for the backward pass, or keys and values of a chat.
        temporary: the largest tensors beside them.
        reserved: the device's own needs.
    """

    weights: dict[str, float]
    gradients: float = 0.0
    optimiser: float = 0.0
    activations: float = 0.0
    temporary: float = 0.0
    reserved: float = ASSUMED["reserved_gigabytes"] * 1e9
    total: float = field(init=False)

    def __post_init__(self) -> None:
        rest = self.gradients + self.optimiser + self.activations + self.temporary + self.reserved
        object.__setattr__(self, "total", sum(self.weights.values()) + rest)


@dataclass
class PartWeights:
    """The weights of one part: their number, bytes as they are stored, and the type of most."""

    parameters: int = 0
    bytes: float = 0.0
    precision: str = ""


def part_weights(model: VideoLlama, *, quantization: str = "none") -> dict[str, PartWeights]:
    """Count the weights of every group of a model; matrices of the LLM's layers are quantised."""
    quantised = quantization in ("int8", "nf4")
    parts = {group: PartWeights() for group in (*GROUPS, ADAPTER)}
    largest = dict.fromkeys(parts, 0)
    for name, parameter in model.named_parameters():
        group = ADAPTER if LORA in name else group_of(original_name(name))
        assert group is not None
        stored = precision_name(parameter)
        # Word table, output layer and an adapter are never quantised.
        if (
            quantised
            and group != ADAPTER
            and name.startswith("language_model.model.layers.")
            and parameter.ndim == 2
        ):
            stored = quantization
        part = parts[group]
        part.parameters += parameter.numel()
        part.bytes += parameter.numel() * BYTES[stored]
        if parameter.numel() > largest[group]:
            largest[group], part.precision = parameter.numel(), stored
    if quantised:
        parts["language_model"].precision = quantization
    return {group: part for group, part in parts.items() if part.parameters}


def weight_bytes(
    settings: ModelSettings, model: VideoLlama, *, shards: int = 1
) -> dict[str, float]:
    """Return the bytes of every part on one GPU; FSDP spreads the LLM's layers over `shards`."""
    parts = part_weights(model, quantization=settings.quantization)
    stored = {name: part.bytes for name, part in parts.items()}
    # The audio branch trains without the vision encoder, unless files are given for it.
    if settings.trained_branch == "audio" and not (settings.vit_ckpt or settings.q_former_model):
        stored = {name: size for name, size in stored.items() if name not in VISION_GROUPS}
    if shards > 1:
        matrices = layer_matrices(model) * BYTES[parts["language_model"].precision]
        depth = model.language_model.config.num_hidden_layers
        # Two layers are whole at a time: the one that computes, and the next.
        stored["language_model"] -= matrices * depth * (1 - 1 / shards)
        stored["language_model"] += 2 * matrices
    return stored


def llm_bytes(model: VideoLlama, precision: str) -> float:
    """Return the bytes of the language model in another precision, or quantised."""
    weights = part_weights(model, quantization=precision)["language_model"]
    quantised = precision in ("int8", "nf4")
    return weights.bytes if quantised else weights.parameters * BYTES[precision]


def layer_matrices(model: VideoLlama) -> int:
    """Count the numbers in the matrices of one layer of the language model."""
    layer = model.language_model.model.layers[0]
    return sum(p.numel() for n, p in layer.named_parameters() if p.ndim == 2 and LORA not in n)


def trained_parameters(model: VideoLlama) -> int:
    """Count the parameters with gradients."""
    return sum(parameter.numel() for _, parameter in model.trainable_parameters())


def training_memory(cfg: Config, model: VideoLlama, cost: StepCost, *, shards: int) -> Memory:
    """Add up the memory of a training step, whose LLM is spread over `shards` GPUs."""
    trained = trained_parameters(model)
    return Memory(
        weights=weight_bytes(cfg.model, model, shards=shards),
        gradients=GRADIENT_BYTES * trained,
        optimiser=OPTIMISER_BYTES * trained,
        activations=cost.kept,
        temporary=cost.peak - cost.kept,
    )


def chat_memory(
    cfg: Config, model: VideoLlama, cost: StepCost, row: BatchRow, *, new_tokens: int
) -> Memory:
    """Add up the memory of an answer, whose cost up to the first token is given."""
    llm = model.language_model.config
    heads = llm.num_key_value_heads or llm.num_attention_heads
    width = llm.head_dim or llm.hidden_size // llm.num_attention_heads
    states = 2 * llm.num_hidden_layers * heads * width * model.language_model.dtype.itemsize
    return Memory(
        weights=weight_bytes(cfg.model, model),
        activations=states * (row.length + new_tokens),
        # Keys and values of the prompt are part of the measured peak.
        temporary=max(0.0, cost.peak - states * row.length),
    )
