"""What the original computes, the way it computes it, on the weights of our modules.

Eager attention with explicit masks, LayerNorm through fp32 copies, a picture repeated in time for
ImageBind's 3-D stem, logits of the whole vocabulary at every position. Results are equal to ours
within rounding; `tests/test_benchmarks.py` compares them.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import Tensor, nn

from video_llama.models.audio_encoder import Attention, ImageBind, Modality
from video_llama.models.qformer import TemporalQFormer
from video_llama.models.video_llama import VideoLlama

UNUSED_TOWERS = {"text": 302_309_376, "depth": 21_302_784, "thermal": 85_072_896, "imu": 18_920_448}
"""Parameters of ImageBind's towers that the original keeps in memory and never uses."""


@contextlib.contextmanager
def original_attention(model: VideoLlama) -> Iterator[None]:
    """Attention without SDPA, and LayerNorms of the ViT through fp32 copies."""
    vit = nn.Module() if model.vision_encoder is None else model.vision_encoder.vit
    blocks = getattr(vit, "blocks", ())
    qformers = [part for part in (model.frame_qformer, *_branches(model)) if part is not None]
    configs = [model.language_model.config, *(part.qformer.config for part in qformers)]
    handles = [
        handle
        for module in vit.modules()
        if isinstance(module, nn.LayerNorm)
        for handle in _through_fp32(module)
    ]
    for block in blocks:
        block.attn.fused_attn = False
    for config in configs:
        config._attn_implementation = "eager"
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
        for block in blocks:
            block.attn.fused_attn = True
        for config in configs:
            config._attn_implementation = "sdpa"


def _branches(model: VideoLlama) -> list[TemporalQFormer]:
    return [branch for branch in (model.video_branch, model.audio_branch) if branch is not None]


def _through_fp32(norm: nn.LayerNorm) -> Iterator[torch.utils.hooks.RemovableHandle]:
    # Autocast turns the half-precision input of a LayerNorm into an fp32 copy, and its output back.
    dtype = norm.weight.dtype
    yield norm.register_forward_pre_hook(lambda _, args: (args[0].float().to(dtype),))


def encode_video(model: VideoLlama, video: Tensor) -> Tensor:
    """(B, 3, T, H, W) to (B, Q, D_llm) with explicit masks of ones."""
    frames = rearrange(video, "b c t h w -> (b t) c h w")
    assert model.vision_encoder is not None
    assert model.frame_qformer is not None
    with torch.no_grad():
        patches = model.vision_encoder(frames)
        queries = _attend(
            model.frame_qformer.qformer, model.frame_qformer.query_tokens, patches.float()
        )
    return _temporal(model.video_branch, queries.unflatten(0, (len(video), -1)))


def encode_audio(model: VideoLlama, audio: Tensor, modality: Modality) -> Tensor:
    """As `VideoLlama.encode_audio`, with torch's own multi-head attention and all of the head."""
    assert model.audio_encoder is not None
    assert model.audio_branch is not None
    with torch.no_grad():
        embeddings = _imagebind(model.audio_encoder, audio, modality)
    return _temporal(model.audio_branch, rearrange(embeddings, "b s d -> b s 1 d"))


def _imagebind(encoder: ImageBind, inputs: Tensor, modality: Modality) -> Tensor:
    stem, trunk = encoder.modality_preprocessors[modality], encoder.modality_trunks[modality]
    items = rearrange(inputs, "b s ... -> (b s) ...").to(next(encoder.parameters()).dtype)
    if modality == "vision":
        patches = stem.rgbt_stem["proj"](repeat(items, "n c h w -> n c t h w", t=2))
        tokens = rearrange(patches, "n d 1 h w -> n (h w) d")
        tokens = torch.cat([stem.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
        tokens = tokens + stem.pos_embedding_helper["pos_embed"]
    else:
        tokens = stem(items)
    tokens = rearrange(trunk.pre_transformer_layer(tokens), "n l d -> l n d")
    for block in trunk.blocks:
        tokens = tokens + _multi_head(block.attn, block.norm_1(tokens))
        hidden = F.gelu(block.mlp["fc1"](block.norm_2(tokens)))
        tokens = tokens + block.mlp["fc2"](hidden)
    norm, _, projection = encoder.modality_heads[modality].children()
    pooled = norm(rearrange(tokens, "l n d -> n l d"))[:, 0]
    output: Tensor = encoder.modality_postprocessors[modality](projection(pooled).float())
    return output.unflatten(0, inputs.shape[:2])


def _multi_head(attention: Attention, tokens: Tensor) -> Tensor:
    output, _ = F.multi_head_attention_forward(
        tokens,
        tokens,
        tokens,
        tokens.shape[-1],
        attention.num_heads,
        attention.in_proj_weight,
        attention.in_proj_bias,
        attention.bias_k,
        attention.bias_v,
        False,
        0.0,
        attention.out_proj.weight,
        attention.out_proj.bias,
        training=False,
        need_weights=False,
    )
    return output


def _temporal(branch: TemporalQFormer, features: Tensor) -> Tensor:
    steps = features + branch.position_embedding.weight[: features.shape[1], None]
    tokens = _attend(branch.qformer, branch.query_tokens, rearrange(steps, "b t q d -> b (t q) d"))
    projected: Tensor = branch.proj(tokens)
    return projected


def _attend(qformer: nn.Module, query_tokens: Tensor, features: Tensor) -> Tensor:
    queries = query_tokens.expand(len(features), -1, -1)
    output: Tensor = qformer(
        query_embeds=queries,
        attention_mask=torch.ones(queries.shape[:2], device=features.device),
        encoder_hidden_states=features,
        encoder_attention_mask=torch.ones(
            features.shape[:2], dtype=torch.long, device=features.device
        ),
    ).last_hidden_state
    return output


def loss(model: VideoLlama, inputs_embeds: Tensor, labels: Tensor, mask: Tensor) -> Tensor:
    """Mean cross entropy from the logits of every position."""
    logits = model.language_model(
        inputs_embeds=inputs_embeds, attention_mask=mask.long(), use_cache=False
    ).logits.float()
    shifted = logits[:, :-1].contiguous().view(-1, logits.shape[-1])
    return F.cross_entropy(shifted, labels[:, 1:].reshape(-1).to(logits.device))


@torch.no_grad()
def prefill(model: VideoLlama, inputs_embeds: Tensor) -> Tensor:
    """Logits of every position of the prompt."""
    mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
    output: Tensor = model.language_model(
        inputs_embeds=inputs_embeds, attention_mask=mask, use_cache=True
    ).logits
    return output


@torch.no_grad()
def answer(model: VideoLlama, inputs_embeds: Tensor, length: int) -> list[int]:
    """Greedy tokens, with the logits of every position of the prompt and a growing mask."""
    mask = torch.ones(inputs_embeds.shape[:2], dtype=torch.long, device=inputs_embeds.device)
    output = model.language_model(inputs_embeds=inputs_embeds, attention_mask=mask, use_cache=True)
    ids = [output.logits[:, -1].argmax(dim=-1)]
    while len(ids) < length:
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], dim=1)
        output = model.language_model(
            input_ids=ids[-1][:, None],
            attention_mask=mask,
            past_key_values=output.past_key_values,
            use_cache=True,
        )
        ids.append(output.logits[:, -1].argmax(dim=-1))
    return torch.cat(ids).tolist()
