"""The arithmetic and the memory traffic of every part. Torch-free.

A multiplication and an addition are two operations. Attention is counted whole, also where a mask
hides half of it, as `torch.utils.flop_counter` does (a test compares the two).
"""

from __future__ import annotations

from dataclasses import astuple, dataclass

from video_llama.apps.estimate.shapes import (
    PICTURE_PATCH,
    SOUND_GRID,
    SOUND_KERNEL,
    Llama,
    vit_hidden,
    vit_tokens,
)
from video_llama.models.settings import ModelSettings

NORM, FUSED_ADD, ACTIVATION, COPY = 2, 3, 2, 2
"""Numbers that are read and written for one number of a LayerNorm, a sum, a GELU and a copy."""
LLAMA_NORM, ROTARY, GATE = 7, 10, 5
"""The same of LLaMA's norm and rotary positions, several operations each, and SiLU times."""
LOSS = 6
"""The same of a logit in the cross entropy and its gradient."""
LAUNCHES = {"vit": 16, "qformer": 30, "imagebind": 16, "llama": 40}
"""Operations of one layer without gradients, each of which is a kernel on a GPU."""


@dataclass(frozen=True)
class Work:
    """What one pass of a part does.

    Attributes:
        matmul: operations in products with weights.
        attention: operations in products of activations.
        moved: numbers that element-wise operations read and write.
        weights: weights that are read, whatever the batch.
        launches: operations that the host starts.
    """

    matmul: float = 0.0
    attention: float = 0.0
    moved: float = 0.0
    weights: float = 0.0
    launches: float = 0.0

    @property
    def flops(self) -> float:
        """All arithmetic that counts."""
        return self.matmul + self.attention

    def __add__(self, other: Work) -> Work:
        return Work(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))

    def __mul__(self, factor: float) -> Work:
        return Work(*(value * factor for value in astuple(self)))


def frozen_backward(forward: Work) -> Work:
    """The backward pass of a frozen part in front of which something trains.

    Gradients of activations alone: as much as the forward pass in products with weights, twice as
    much in attention, whose both factors have gradients.
    """
    return Work(
        matmul=forward.matmul,
        attention=2 * forward.attention,
        moved=2 * forward.moved,
        weights=forward.weights,
        launches=1.5 * forward.launches,
    )


def trained_backward(forward: Work) -> Work:
    """The backward pass of a part that trains: gradients of activations and of weights."""
    return Work(
        matmul=2 * forward.matmul,
        attention=2 * forward.attention,
        moved=2 * forward.moved,
        weights=2 * forward.weights,
        launches=2 * forward.launches,
    )


def linear(rows: float, inputs: int, outputs: int) -> Work:
    """A linear layer on so many rows."""
    return Work(matmul=2 * rows * inputs * outputs, weights=inputs * outputs, launches=1)


def _encoder(items: float, tokens: int, *, width: int, hidden: int, kind: str) -> Work:
    """A pre-norm layer of self-attention and MLP on `items` sequences."""
    rows = items * tokens
    per_token = 2 * NORM * width + 2 * FUSED_ADD * width + ACTIVATION * hidden + COPY * width
    return Work(
        matmul=2 * rows * (4 * width * width + 2 * width * hidden),
        attention=4 * items * tokens * tokens * width,
        moved=rows * per_token,
        weights=4 * width * width + 2 * width * hidden,
        launches=LAUNCHES[kind],
    )


def vit(settings: ModelSettings, frames: float) -> Work:
    """EVA ViT on so many frames."""
    sizes, tokens = settings.vit_config, vit_tokens(settings)
    block = _encoder(frames, tokens, width=sizes.embed_dim, hidden=vit_hidden(settings), kind="vit")
    stem = linear(frames * (tokens - 1), 3 * sizes.patch_size**2, sizes.embed_dim)
    norm = Work(moved=NORM * frames * tokens * sizes.embed_dim, launches=2)
    return stem + block * sizes.depth + norm


def _qformer_layer(
    settings: ModelSettings, items: float, queries: int, *, context: int, input_width: int
) -> Work:
    """A layer of a Q-Former; `context` of 0: it does not attend across."""
    width, hidden = settings.qformer_config.hidden_size, settings.qformer_config.intermediate_size
    rows = items * queries
    attention = 4 * items * queries * queries * width
    matrices = 4 * width * width + 2 * width * hidden
    matmul = 2 * rows * matrices
    norms = 2
    if context:
        matmul += 2 * rows * 2 * width * width + 2 * items * context * 2 * input_width * width
        attention += 4 * items * queries * context * width
        matrices += 2 * width * width + 2 * input_width * width
        norms = 3
    moved = rows * (norms * (NORM + FUSED_ADD) * width + ACTIVATION * hidden)
    return Work(matmul, attention, moved, matrices, LAUNCHES["qformer"])


def frame_qformer(settings: ModelSettings, frames: float) -> Work:
    """BLIP-2's Q-Former on so many frames."""
    depth, queries = settings.qformer_config.num_hidden_layers, settings.num_query_token
    width = settings.vit_config.embed_dim
    across = _qformer_layer(
        settings, frames, queries, context=vit_tokens(settings), input_width=width
    )
    alone = _qformer_layer(settings, frames, queries, context=0, input_width=width)
    return across * ((depth + 1) // 2) + alone * (depth // 2)


def temporal(
    settings: ModelSettings, llm_width: int, items: float, *, audio: bool, steps: int
) -> Work:
    """A branch's trained part: the Q-Former over time and the linear layer behind it.

    Args:
        settings: the model section.
        llm_width: width of the language model.
        items: how many clips, pictures or sounds.
        audio: whether it is the audio branch.
        steps: frames or segments of each.
    """
    if audio:
        queries, context = settings.num_audio_query_token, steps
        width = settings.imagebind_config.out_embed_dim
    else:
        queries, context = settings.num_video_query_token, steps * settings.num_query_token
        width = settings.qformer_config.hidden_size
    layer = _qformer_layer(settings, items, queries, context=context, input_width=width)
    proj = linear(items * queries, settings.qformer_config.hidden_size, llm_width)
    positions = Work(moved=FUSED_ADD * items * context * width, launches=3)
    if settings.video_fusion == "mean" and not audio:
        return positions + proj
    return positions + layer * settings.fusion_head_layers + proj


def imagebind_pictures(settings: ModelSettings, frames: float) -> Work:
    """ImageBind's vision tower on so many frames."""
    sizes = settings.imagebind_config
    width, side = sizes.vision_embed_dim, settings.image_size // PICTURE_PATCH
    stem = linear(frames * side**2, 3 * PICTURE_PATCH**2, width)
    block = _encoder(frames, 1 + side**2, width=width, hidden=4 * width, kind="imagebind")
    return stem + block * sizes.vision_num_blocks + linear(frames, width, sizes.out_embed_dim)


def imagebind_sounds(settings: ModelSettings, segments: float) -> Work:
    """ImageBind's audio tower on so many segments of sound."""
    sizes, patches = settings.imagebind_config, SOUND_GRID[0] * SOUND_GRID[1]
    width, tokens = sizes.audio_embed_dim, 1 + patches
    stem = linear(segments * patches, SOUND_KERNEL**2, width)
    block = _encoder(segments, tokens, width=width, hidden=4 * width, kind="imagebind")
    # One extra key and value in every attention.
    key_bias = Work(attention=4 * segments * tokens * width)
    return (
        stem
        + (block + key_bias) * sizes.audio_num_blocks
        + linear(segments, width, sizes.out_embed_dim)
    )


def llama_layers(llama: Llama, rows: float, *, length: int, context: int) -> Work:
    """The layers of the language model.

    Args:
        llama: its sizes.
        rows: sequences.
        length: new tokens of each.
        context: tokens that they attend to, the new ones included.
    """
    tokens = rows * length
    heads = llama.num_attention_heads * llama.head_dim
    rotated = heads + llama.num_key_value_heads * llama.head_dim
    per_token = (
        (2 * LLAMA_NORM + 2 * FUSED_ADD) * llama.hidden_size
        + ROTARY * rotated
        + GATE * llama.intermediate_size
    )
    layer = Work(
        matmul=2 * tokens * llama.layer_matrices,
        attention=4 * rows * length * context * heads,
        moved=tokens * per_token,
        weights=llama.layer_matrices,
        launches=LAUNCHES["llama"],
    )
    return layer * llama.num_hidden_layers


def llama_head(llama: Llama, tokens: float, *, loss: bool) -> Work:
    """The output layer on so many tokens, with the cross entropy of them if `loss`."""
    moved = LOSS * tokens * llama.vocab_size if loss else 0.0
    return linear(tokens, llama.hidden_size, llama.vocab_size) + Work(moved=moved, launches=5)
