"""Parameters of every part, from the settings alone. Torch-free.

The parts are the groups of weights of `video_llama.models.weights.names`; a test compares the
counts with the modules themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from video_llama.models.settings import ImageBindSettings, ModelSettings
from video_llama.models.weights.checks import RELEASED_SIZES, llama_values
from video_llama.models.weights.names import GROUPS, trainable_prefixes
from video_llama.types import ConfigError

PICTURE_PATCH = 14
"""Side of ImageBind's picture patches, pixels; a kernel spans two frames."""
SOUND_GRID = (12, 19)
"""ImageBind's spectrogram patches: 16 x 16 every 10, of 128 mel bins and 204 steps."""
SOUND_KERNEL = 16


@dataclass(frozen=True)
class Llama:
    """Sizes of the language model, under the names of its config.json."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    vocab_size: int
    tie_word_embeddings: bool

    @classmethod
    def of_values(cls, values: Mapping[str, Any]) -> Llama:
        """From a config.json, with LLaMA's values where it is silent."""
        width, heads = values.get("hidden_size", 4096), values.get("num_attention_heads", 32)
        return cls(
            hidden_size=width,
            intermediate_size=values.get("intermediate_size", 11008),
            num_hidden_layers=values.get("num_hidden_layers", 32),
            num_attention_heads=heads,
            num_key_value_heads=values.get("num_key_value_heads") or heads,
            head_dim=values.get("head_dim") or width // heads,
            vocab_size=values.get("vocab_size", 32000),
            tie_word_embeddings=values.get("tie_word_embeddings", False),
        )

    @property
    def layer_matrices(self) -> int:
        """Numbers in the matrices of one layer, which are what quantisation shrinks."""
        queries, keys = self.num_attention_heads, self.num_key_value_heads
        attention = self.hidden_size * self.head_dim * (2 * queries + 2 * keys)
        return attention + 3 * self.hidden_size * self.intermediate_size

    @property
    def tables(self) -> int:
        """Numbers in the word table and the output layer."""
        return self.vocab_size * self.hidden_size * (1 if self.tie_word_embeddings else 2)

    @property
    def parameters(self) -> int:
        """All of them, norms included."""
        norms = (2 * self.num_hidden_layers + 1) * self.hidden_size
        return self.num_hidden_layers * self.layer_matrices + self.tables + norms


def llama_of(folder: str, size: str | None = None) -> Llama:
    """The language model of a folder, or a released size where there is no such folder.

    Args:
        folder: `model.llama_model`.
        size: "7b" or "13b", which wins over the folder; None: the folder's config.json, or else
            13b where its name says so and 7b otherwise.

    Raises:
        ConfigError: a config.json that is none of a LLaMA, or an unknown size.
    """
    if size is None and (Path(folder) / "config.json").exists():
        return Llama.of_values(llama_values(Path(folder)))
    if size is None:
        size = "13b" if "13b" in Path(folder).name.lower() else "7b"
    if size not in RELEASED_SIZES:
        raise ConfigError(f"--llama: {size!r} given, one of {', '.join(RELEASED_SIZES)} expected")
    return Llama.of_values(RELEASED_SIZES[size])


def vit_tokens(settings: ModelSettings) -> int:
    """Tokens of a frame in the vision transformer, its class token included."""
    return 1 + (settings.image_size // settings.vit_config.patch_size) ** 2


def vit_hidden(settings: ModelSettings) -> int:
    """Width of the vision transformer's MLP."""
    return int(settings.vit_config.embed_dim * settings.vit_config.mlp_ratio)


def parameters(settings: ModelSettings, llama: Llama) -> dict[str, int]:
    """Parameters by group of weights; a part that the settings do not build is missing.

    Args:
        settings: the model section.
        llama: the language model.
    """
    llm_width = llama.hidden_size
    counts = {
        "vision_encoder": _vit(settings),
        "vision_norm": 2 * settings.vit_config.embed_dim,
        "frame_qformer": _frame_qformer(settings),
        "video_branch": _video_branch(settings),
        "video_proj": _proj(settings, llm_width),
        "language_model": llama.parameters,
    }
    if settings.equip_audio_branch:
        counts["audio_encoder"] = sum(imagebind(settings.imagebind_config).values())
        counts["audio_branch"] = _proj(settings, llm_width) + _temporal(
            settings,
            queries=settings.num_audio_query_token,
            positions=settings.max_audio_clips,
            width=settings.imagebind_config.out_embed_dim,
        )
    return counts


def trained_groups(settings: ModelSettings) -> set[str]:
    """The groups of weights that an optimiser changes."""
    prefixes = set(trainable_prefixes(settings))
    return {group for group, names in GROUPS.items() if set(names) <= prefixes}


def _vit(settings: ModelSettings) -> int:
    width, hidden = settings.vit_config.embed_dim, vit_hidden(settings)
    patch = 3 * settings.vit_config.patch_size**2
    embedding = patch * width + width + width + vit_tokens(settings) * width
    attention = 4 * width * width + 3 * width  # queries, values and the output have biases
    mlp = 2 * width * hidden + hidden + width
    return embedding + settings.vit_config.depth * (attention + mlp + 4 * width)


def _layer(settings: ModelSettings, *, input_width: int | None) -> int:
    """A layer of a Q-Former; `input_width` of what it attends to across, if it does."""
    sizes = settings.qformer_config
    width, hidden = sizes.hidden_size, sizes.intermediate_size
    attention = 4 * (width * width + width) + 2 * width
    feed_forward = 2 * width * hidden + hidden + width + 2 * width
    if input_width is None:
        return attention + feed_forward
    across = 2 * (width * width + width) + 2 * (input_width * width + width) + 2 * width
    return attention + across + feed_forward


def _frame_qformer(settings: ModelSettings) -> int:
    width, depth = settings.qformer_config.hidden_size, settings.qformer_config.num_hidden_layers
    across = (depth + 1) // 2  # every other layer, from the first one
    layers = across * _layer(settings, input_width=settings.vit_config.embed_dim)
    layers += (depth - across) * _layer(settings, input_width=None)
    return settings.num_query_token * width + 2 * width + layers


def _video_branch(settings: ModelSettings) -> int:
    if settings.video_fusion == "mean":
        return 0
    return _temporal(
        settings,
        queries=settings.num_video_query_token,
        positions=settings.max_frame_pos if settings.video_frame_positions else 0,
        width=settings.qformer_config.hidden_size,
    )


def _temporal(settings: ModelSettings, *, queries: int, positions: int, width: int) -> int:
    own = settings.qformer_config.hidden_size
    layers = settings.fusion_head_layers * _layer(settings, input_width=width)
    return queries * own + positions * width + 2 * own + layers


def _proj(settings: ModelSettings, llm_width: int) -> int:
    return settings.qformer_config.hidden_size * llm_width + llm_width


def imagebind(sizes: ImageBindSettings) -> dict[str, int]:
    """Parameters of ImageBind's two towers, "vision" and "audio"."""
    towers = {}
    grid = (sizes.image_size // PICTURE_PATCH) ** 2
    for name, width, blocks, patch, tokens in (
        ("vision", sizes.vision_embed_dim, sizes.vision_num_blocks, 6 * PICTURE_PATCH**2, 1 + grid),
        (
            "audio",
            sizes.audio_embed_dim,
            sizes.audio_num_blocks,
            SOUND_KERNEL**2,
            1 + SOUND_GRID[0] * SOUND_GRID[1],
        ),
    ):
        block = 12 * width * width + 9 * width + 4 * width
        key_bias = 2 * width * blocks if name == "audio" else 0
        # A norm before the blocks (pictures) or after the stem (sounds), and one in the head.
        stem = patch * width + width + tokens * width + 2 * width
        head = 2 * width + width * sizes.out_embed_dim
        towers[name] = stem + blocks * block + key_bias + head
    return towers
