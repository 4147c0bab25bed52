"""ImageBind's picture and sound towers, which share one embedding space.

The other four towers of ImageBind (text, depth, thermal, IMU) are never built. Module names follow
the released file, so its keys load without renaming.

Source: ImageBind (arXiv 2305.05665).
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from video_llama.models.precision import Precision, cast_floating
from video_llama.models.settings import ImageBindSettings

Modality = Literal["audio", "vision"]

PATCH_SIZE = 14
"""Side of a picture patch, in pixels."""
FRAMES_PER_PATCH = 2
"""Frames that the 3-D patch convolution spans; a still picture fills them all."""
MEL_SHAPE = (128, 204)
"""Mel bins and 10-ms steps of a spectrogram at which the sound positions were learned."""
MEL_KERNEL, MEL_STRIDE = 16, 10
"""Side and stride of a spectrogram patch."""


class ImageBind(nn.Module):
    """Pictures or sounds to unit-direction embeddings in one space."""

    def __init__(self, settings: ImageBindSettings) -> None:
        super().__init__()
        vision, audio = settings.vision_embed_dim, settings.audio_embed_dim
        self.modality_preprocessors = nn.ModuleDict(
            {"vision": PicturePatches(vision, settings.image_size), "audio": SoundPatches(audio)}
        )
        self.modality_trunks = nn.ModuleDict(
            {
                "vision": Trunk(
                    vision, settings.vision_num_blocks, settings.vision_num_heads, pre_norm=True
                ),
                "audio": Trunk(
                    audio, settings.audio_num_blocks, settings.audio_num_heads, key_bias=True
                ),
            }
        )
        self.modality_heads = nn.ModuleDict(
            {
                "vision": _head(vision, settings.out_embed_dim),
                "audio": _head(audio, settings.out_embed_dim),
            }
        )
        self.modality_postprocessors = nn.ModuleDict(
            {
                "vision": nn.Sequential(Normalize()),
                "audio": nn.Sequential(Normalize(), LogitScale()),
            }
        )

    def set_precision(self, precision: Precision) -> None:
        """Store and compute both towers in `precision`; the scale of sounds stays in fp32."""
        cast_floating(self.modality_preprocessors, precision.dtype)
        cast_floating(self.modality_trunks, precision.dtype)
        cast_floating(self.modality_heads, precision.dtype)

    def forward(self, inputs: Tensor, modality: Modality) -> Tensor:
        """Compute one embedding for each picture or sound clip.

        Args:
            inputs: "vision": (B, T, 3, H, W) normalised frames; "audio": (B, S, 1, mel, frames)
                normalised spectrograms of S clips.

        Returns:
            (B, T or S, out_embed_dim): norm 1 for pictures, norm exp(log_logit_scale) (20 unless
            the file says otherwise) for sounds.
        """
        return self.embeddings(inputs, modality)[1]

    def embeddings(self, inputs: Tensor, modality: Modality) -> tuple[Tensor, Tensor]:
        """Compute as `forward`, and return the class token before its projection as well.

        Returns:
            (B, S, tower width) after the head's LayerNorm, and (B, S, out_embed_dim).
        """
        # All clips of all items are one batch for the tower.
        norm, _, projection = self.modality_heads[modality].children()
        items = rearrange(inputs, "b s ... -> (b s) ...").to(
            projection.get_parameter("weight").dtype
        )
        tokens = self.modality_trunks[modality](self.modality_preprocessors[modality](items))
        # Only the class token is read, so only it is normalised.
        pooled = norm(tokens[:, 0])
        projected = self.modality_postprocessors[modality](projection(pooled).float())
        return pooled.unflatten(0, inputs.shape[:2]), projected.unflatten(0, inputs.shape[:2])


class PicturePatches(nn.Module):
    """Pictures to patch tokens with class token and positions, learned at `image_size` pixels."""

    def __init__(self, width: int, image_size: int) -> None:
        super().__init__()
        kernel = (FRAMES_PER_PATCH, PATCH_SIZE, PATCH_SIZE)
        conv = nn.Conv3d(3, width, kernel_size=kernel, stride=kernel, bias=False)
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.rgbt_stem = nn.ModuleDict({"proj": nn.Sequential(nn.Identity(), conv)})
        self.grid = (image_size // PATCH_SIZE, image_size // PATCH_SIZE)
        self.pos_embedding_helper = _positions(self.grid, width)

    def forward(self, frames: Tensor) -> Tensor:
        """Map (N, 3, H, W) to (N, 1 + patches, width)."""
        # A still picture repeated in time, convolved, is one convolution with the kernels summed.
        kernel = self.rgbt_stem.get_parameter("proj.1.weight").sum(dim=2)
        patches = F.conv2d(frames, kernel, stride=PATCH_SIZE)
        return _with_positions(self, patches, rearrange(patches, "n d h w -> n (h w) d"))


class SoundPatches(nn.Module):
    """Spectrograms to overlapping patch tokens with class token and positions."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.randn(1, 1, width) * 0.02)
        self.rgbt_stem = nn.ModuleDict(
            {
                "proj": nn.Conv2d(1, width, MEL_KERNEL, stride=MEL_STRIDE, bias=False),
                "norm_layer": nn.LayerNorm(width, eps=1e-5),
            }
        )
        # Windows overlap, and the rest at the edges is dropped, as in the original.
        mel_bins, steps = MEL_SHAPE
        self.grid = (_num_windows(mel_bins), _num_windows(steps))
        self.pos_embedding_helper = _positions(self.grid, width)

    def forward(self, spectrograms: Tensor) -> Tensor:
        """Map (N, 1, mel, frames) to (N, 1 + patches, width)."""
        patches = self.rgbt_stem["proj"](spectrograms)
        tokens = self.rgbt_stem["norm_layer"](rearrange(patches, "n d h w -> n (h w) d"))
        return _with_positions(self, patches, tokens)


class Trunk(nn.Module):
    """A pre-LayerNorm transformer encoder.

    Args:
        pre_norm: a LayerNorm before the first block.
        key_bias: one extra learned key and value in every attention.
    """

    def __init__(
        self,
        width: int,
        num_blocks: int,
        num_heads: int,
        *,
        pre_norm: bool = False,
        key_bias: bool = False,
    ) -> None:
        super().__init__()
        self.pre_transformer_layer = nn.Sequential(
            nn.LayerNorm(width, eps=1e-6) if pre_norm else nn.Identity()
        )
        self.blocks = nn.ModuleList(
            Block(width, num_heads, key_bias=key_bias) for _ in range(num_blocks)
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (N, L, width) to (N, L, width)."""
        tokens = self.pre_transformer_layer(tokens)
        for block in self.blocks:
            tokens = block(tokens)
        return tokens


class Block(nn.Module):
    """Attention and MLP, each after a LayerNorm and added to its input.

    The released sound tower was trained with stochastic depth, which has no effect outside
    training; these towers are always frozen.
    """

    def __init__(self, width: int, num_heads: int, *, key_bias: bool) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(width, eps=1e-6)
        self.attn = Attention(width, num_heads, key_bias=key_bias)
        self.norm_2 = nn.LayerNorm(width, eps=1e-6)
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (N, L, width) to (N, L, width)."""
        tokens = tokens + self.attn(self.norm_1(tokens))
        hidden = F.gelu(self.mlp["fc1"](self.norm_2(tokens)))
        output: Tensor = tokens + self.mlp["fc2"](hidden)
        return output


class Attention(nn.Module):
    """Self-attention with the parameter names of `nn.MultiheadAttention`, through SDPA.

    `nn.MultiheadAttention` itself leaves its fast path where there is a key bias.
    """

    def __init__(self, width: int, num_heads: int, *, key_bias: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        self.bias_k = nn.Parameter(torch.randn(1, 1, width) * 0.02) if key_bias else None
        self.bias_v = nn.Parameter(torch.randn(1, 1, width) * 0.02) if key_bias else None
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map (N, L, width) to (N, L, width)."""
        # The extra key and value are attended to by every token and have no query of their own.
        query, key, value = F.linear(tokens, self.in_proj_weight, self.in_proj_bias).chunk(3, -1)
        if self.bias_k is not None and self.bias_v is not None:
            key = torch.cat([key, self.bias_k.expand(len(key), -1, -1)], dim=1)
            value = torch.cat([value, self.bias_v.expand(len(value), -1, -1)], dim=1)
        query, key, value = (
            rearrange(x, "n l (h d) -> n h l d", h=self.num_heads) for x in (query, key, value)
        )
        attended = F.scaled_dot_product_attention(query, key, value)
        projected: Tensor = self.out_proj(rearrange(attended, "n h l d -> n l (h d)"))
        return projected


class Normalize(nn.Module):
    """Scale the last dimension to norm 1."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        return F.normalize(x, dim=-1)


class LogitScale(nn.Module):
    """Multiply by exp(log_logit_scale), 100 at most: the learned norm of sound embeddings."""

    log_logit_scale: Tensor

    def __init__(self, initial: float = 20.0) -> None:
        super().__init__()
        # A buffer that the released file holds, but not ours: made for real also on meta.
        self.register_buffer("log_logit_scale", torch.tensor(math.log(initial), device="cpu"))

    def forward(self, x: Tensor) -> Tensor:
        """Map (..., D) to (..., D)."""
        return x * self.log_logit_scale.exp().clamp(max=100.0)


def resize_positions(learned: Tensor, old: tuple[int, int], new: tuple[int, int]) -> Tensor:
    """Resize the learned positions of one patch grid bicubically for another one.

    Args:
        learned: (1, 1 + old rows * old columns, width), the class token first.
        old: rows and columns that were learned.
        new: rows and columns that are needed.

    Returns:
        (1, 1 + new rows * new columns, width).
    """
    # The class token has no place in the picture and is passed on; the grid is resized in fp32.
    grid = rearrange(learned[:, 1:], "1 (h w) d -> 1 d h w", h=old[0], w=old[1])
    resized = F.interpolate(grid.float(), size=new, mode="bicubic", align_corners=False)
    patches = rearrange(resized, "1 d h w -> 1 (h w) d").to(learned.dtype)
    return torch.cat([learned[:, :1], patches], dim=1)


def _num_windows(length: int) -> int:
    return (length - MEL_KERNEL) // MEL_STRIDE + 1


def _head(width: int, out_width: int) -> nn.Sequential:
    # The slot in the middle is ImageBind's token selection, which has no weights.
    return nn.Sequential(
        nn.LayerNorm(width, eps=1e-6), nn.Identity(), nn.Linear(width, out_width, bias=False)
    )


def _positions(grid: tuple[int, int], width: int) -> nn.ParameterDict:
    learned = torch.randn(1, 1 + grid[0] * grid[1], width) * 0.02
    return nn.ParameterDict({"pos_embed": nn.Parameter(learned)})


def _with_positions(stem: PicturePatches | SoundPatches, patches: Tensor, tokens: Tensor) -> Tensor:
    """Prepend the class token and add positions, resized bicubically to the grid of `patches`."""
    learned: Tensor = stem.pos_embedding_helper.get_parameter("pos_embed")
    grid = (patches.shape[-2], patches.shape[-1])
    if grid != stem.grid:
        learned = resize_positions(learned, stem.grid, grid)
    with_class: Tensor = torch.cat([stem.cls_token.expand(len(tokens), -1, -1), tokens], dim=1)
    return with_class + learned
