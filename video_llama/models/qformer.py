"""The two Q-Formers: BLIP-2's per frame, and the two-layer one over time (video and audio)."""

from __future__ import annotations

import video_llama.common.compat

import torch
from einops import rearrange
from torch import Tensor, nn
from transformers import Blip2QFormerConfig, Blip2QFormerModel

from video_llama.models.settings import ModelSettings, QFormerSettings
from video_llama.types import ConfigError

DROPOUT = 0.1
"""Of hidden states and attention, as in BERT. The Q-Formers that train have it, and only then."""


class FrameQFormer(nn.Module):
    """BLIP-2's Q-Former: the patch features of a frame to `num_queries` tokens.

    Every other layer attends to the frame. Text branch and heads are not built.

    Source: BLIP-2 (arXiv 2301.12597).
    """

    def __init__(self, settings: QFormerSettings, *, num_queries: int, input_width: int) -> None:
        super().__init__()
        self.query_tokens = _query_tokens(num_queries, settings.hidden_size)
        self.qformer = _qformer(
            settings,
            num_layers=settings.num_hidden_layers,
            input_width=input_width,
            cross_attention_frequency=2,
        )

    def forward(self, features: Tensor) -> Tensor:
        """Summarise frames: (N, num_patches, input_width) to (N, num_queries, hidden_size)."""
        return _attend(self.qformer, self.query_tokens, features)


class TemporalQFormer(nn.Module):
    """One branch's trained part: features over time to tokens of the language model.

    A learned position per time step is added to that step's features, a two-layer Q-Former with
    cross-attention in both layers reads all steps, and a linear layer maps to the LLM's width. The
    video branch has 32 tokens per frame, the audio branch one per clip.

    Source: Video-LLaMA (arXiv 2306.02858).

    Args:
        settings: sizes of the encoder and how positions begin and stretch.
        num_queries: learned queries, which is the number of tokens that the LLM sees.
        num_positions: the most time steps; 0: steps have no positions, and any number will do.
        steps_name: what a time step is, for errors.
        positions_key: the setting that `num_positions` comes from, for errors.
    """

    def __init__(
        self,
        settings: ModelSettings,
        *,
        num_queries: int,
        num_positions: int,
        input_width: int,
        output_width: int,
        steps_name: str,
        positions_key: str,
    ) -> None:
        super().__init__()
        width = settings.qformer_config.hidden_size
        self.query_tokens = _query_tokens(num_queries, width)
        self.position_embedding: nn.Embedding | None = None
        if num_positions:
            # Scaled afterwards, so that the random numbers are the same for every spread.
            self.position_embedding = nn.Embedding(num_positions, input_width)
            self.position_embedding.weight.data *= settings.position_init_std
        self.qformer = _qformer(
            settings.qformer_config,
            num_layers=settings.fusion_head_layers,
            input_width=input_width,
            cross_attention_frequency=1,
        )
        self.proj = nn.Linear(width, output_width)
        self.steps_name = steps_name
        self.positions_key = positions_key
        self.interpolate_positions = settings.interpolate_positions

    def forward(self, features: Tensor) -> Tensor:
        """Map features to tokens of the language model.

        Args:
            features: (B, T, Q, input_width): Q feature vectors for each of T time steps.

        Returns:
            (B, num_queries, output_width).

        Raises:
            ConfigError: more time steps than learned positions, and no interpolation.
        """
        # Positions tell the steps apart: without them the Q-Former reads a set.
        steps = features.to(self.query_tokens.dtype)
        if self.position_embedding is not None:
            positions = self.positions(self.position_embedding.weight, features.shape[1])
            steps = steps + rearrange(positions, "t d -> t 1 d")
        tokens = _attend(self.qformer, self.query_tokens, rearrange(steps, "b t q d -> b (t q) d"))
        projected: Tensor = self.proj(tokens)
        return projected

    def positions(self, learned: Tensor, num_steps: int) -> Tensor:
        """Return (num_steps, input_width) learned vectors, stretched linearly where allowed."""
        if num_steps <= len(learned):
            return learned[:num_steps]
        if not self.interpolate_positions:
            raise ConfigError(
                f"{num_steps} {self.steps_name} given, but {self.positions_key} is {len(learned)}; "
                "give fewer, or set model.interpolate_positions=true"
            )
        # Linear, ends kept: the first and the last step stay what they were trained as.
        stretched = nn.functional.interpolate(
            learned.T[None].float(), size=num_steps, mode="linear", align_corners=True
        )
        return stretched[0].T.to(learned.dtype)


class MeanPooling(nn.Module):
    """The ablated video branch: the frames' queries averaged over time, then the linear layer.

    Source: the ablation without video Q-Former; any order of the frames gives the same tokens.
    """

    def __init__(self, *, input_width: int, output_width: int) -> None:
        super().__init__()
        self.proj = nn.Linear(input_width, output_width)

    def forward(self, features: Tensor) -> Tensor:
        """Map (B, T, Q, input_width) features to (B, Q, output_width) tokens."""
        projected: Tensor = self.proj(features.to(self.proj.weight.dtype).mean(dim=1))
        return projected


def frame_qformer(settings: ModelSettings) -> FrameQFormer:
    """Build BLIP-2's Q-Former with fresh weights."""
    return FrameQFormer(
        settings.qformer_config,
        num_queries=settings.num_query_token,
        input_width=settings.vit_config.embed_dim,
    )


def video_branch(settings: ModelSettings, llm_width: int) -> TemporalQFormer | MeanPooling:
    """Build the trained part of the video branch, with fresh weights."""
    if settings.video_fusion == "mean":
        width = settings.qformer_config.hidden_size
        return MeanPooling(input_width=width, output_width=llm_width)
    return TemporalQFormer(
        settings,
        num_queries=settings.num_video_query_token,
        num_positions=settings.max_frame_pos if settings.video_frame_positions else 0,
        input_width=settings.qformer_config.hidden_size,
        output_width=llm_width,
        steps_name="frames",
        positions_key="model.max_frame_pos",
    )


def audio_branch(settings: ModelSettings, llm_width: int) -> TemporalQFormer:
    """Build the trained part of the audio branch, with fresh weights."""
    return TemporalQFormer(
        settings,
        num_queries=settings.num_audio_query_token,
        num_positions=settings.max_audio_clips,
        input_width=settings.imagebind_config.out_embed_dim,
        output_width=llm_width,
        steps_name="segments",
        positions_key="model.max_audio_clips",
    )


def _query_tokens(num_queries: int, width: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(1, num_queries, width) * 0.02)


def _qformer(
    settings: QFormerSettings, *, num_layers: int, input_width: int, cross_attention_frequency: int
) -> Blip2QFormerModel:
    # BERT's embeddings of text are not built: queries are the only input beside the features.
    config = Blip2QFormerConfig(
        hidden_size=settings.hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=settings.num_attention_heads,
        intermediate_size=settings.intermediate_size,
        encoder_hidden_size=input_width,
        cross_attention_frequency=cross_attention_frequency,
        hidden_dropout_prob=DROPOUT,
        attention_probs_dropout_prob=DROPOUT,
        use_qformer_text_input=False,
    )
    config._attn_implementation = "sdpa"
    return Blip2QFormerModel(config)


def _attend(qformer: Blip2QFormerModel, query_tokens: Tensor, features: Tensor) -> Tensor:
    # No mask is passed: every query and every feature is real, and SDPA is fastest without one.
    queries = query_tokens.expand(len(features), -1, -1)
    output: Tensor = qformer(query_embeds=queries, encoder_hidden_states=features).last_hidden_state
    return output
