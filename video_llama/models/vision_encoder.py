"""EVA ViT-g/14 and the LayerNorm on top of it: frames to patch features."""

from __future__ import annotations

from typing import cast

import video_llama.common.compat

import timm
import torch
from timm.models.eva import Eva, EvaAttention
from torch import Tensor, nn

from video_llama.models.precision import Precision, cast_floating
from video_llama.models.settings import ModelSettings


class VisionEncoder(nn.Module):
    """The image tower of BLIP-2: EVA ViT-g without its last block and head, then LayerNorm.

    EVA-g has 40 blocks; BLIP-2 reads the features before the last one and adds a norm of its own
    in their place. timm's EVA has the released key names and computes attention through SDPA.

    Source: EVA (arXiv 2211.07636), BLIP-2 (arXiv 2301.12597).

    Args:
        settings: `image_size`, `vit_config`, `drop_path_rate` and `use_grad_checkpoint` are read.
    """

    def __init__(self, settings: ModelSettings) -> None:
        super().__init__()
        sizes = settings.vit_config
        vit = timm.create_model(
            "eva_giant_patch14_224",
            img_size=settings.image_size,
            patch_size=sizes.patch_size,
            embed_dim=sizes.embed_dim,
            depth=sizes.depth,
            num_heads=sizes.num_heads,
            mlp_ratio=sizes.mlp_ratio,
            drop_path_rate=settings.drop_path_rate,
            num_classes=0,
            global_pool="",
        )
        self.vit = cast(Eva, vit)
        self.vit.norm = nn.Identity()
        self.vit.set_grad_checkpointing(settings.use_grad_checkpoint)
        for block in self.vit.blocks:
            # EVA's keys have no bias. timm keeps the zeros in a buffer that no file holds, so it is
            # made for real even where the module is built without memory.
            zeros = torch.zeros(sizes.embed_dim, device="cpu")
            cast(EvaAttention, block.attn).register_buffer("k_bias", zeros, persistent=False)
        self.norm = nn.LayerNorm(sizes.embed_dim, eps=1e-5)

    def set_precision(self, precision: Precision) -> None:
        """Store and compute the ViT in `precision`; the final LayerNorm stays in fp32."""
        cast_floating(self.vit, precision.dtype)

    def forward(self, frames: Tensor) -> Tensor:
        """Compute the patch features of each frame.

        Args:
            frames: (N, 3, H, W) normalised pictures of the configured size.

        Returns:
            (N, 1 + num_patches, embed_dim); the first token is the class token.
        """
        dtype = self.vit.get_parameter("cls_token").dtype
        features = self.vit.forward_features(frames.to(dtype))
        normed: Tensor = self.norm(features.float())
        return normed.to(dtype)
