from __future__ import annotations

import pytest
import torch

from tests.golden_model import golden_settings
from video_llama.models.settings import VitSettings
from video_llama.models.vision_encoder import VisionEncoder


def encoder(*, device: str = "cpu", **changes: object) -> VisionEncoder:
    sizes = VitSettings(embed_dim=16, depth=2, num_heads=2, mlp_ratio=2)
    with torch.device(device):
        return VisionEncoder(golden_settings(None, vit_config=sizes, image_size=28, **changes))


def test_a_frame_is_a_class_token_and_its_patches() -> None:
    features = encoder().eval()(torch.randn(3, 3, 28, 28))
    assert features.shape == (3, 1 + 4, 16)
    assert torch.allclose(features.mean(dim=-1), torch.zeros(3, 5), atol=1e-5), "normalised"


def test_keys_without_bias_are_real_where_the_weights_are_not() -> None:
    built = encoder(device="meta")
    assert {parameter.device.type for parameter in built.parameters()} == {"meta"}
    for block in built.vit.blocks:
        assert block.attn.k_bias.device.type == "cpu"
        assert not block.attn.k_bias.any()
    assert not [name for name in built.state_dict() if name.endswith("k_bias")]


@pytest.mark.parametrize("recomputes", [False, True])
def test_recomputed_blocks_have_the_same_gradients(recomputes: bool) -> None:
    built = encoder(use_grad_checkpoint=recomputes).train()
    assert built.vit.grad_checkpointing is recomputes
    plain = encoder().train()
    plain.load_state_dict(built.state_dict())
    frames = torch.randn(2, 3, 28, 28)
    for each in (built, plain):
        each(frames)[..., 0].square().sum().backward()
    for (name, a), (_, b) in zip(built.named_parameters(), plain.named_parameters(), strict=True):
        torch.testing.assert_close(a.grad, b.grad, msg=name)
