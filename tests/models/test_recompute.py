from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.golden_model import build_golden, golden
from video_llama.models.llama_training import recompute_activations
from video_llama.models.video_llama import VideoLlama
from video_llama.types import CaptionBatch


def batch() -> CaptionBatch:
    pixels = golden().input("forward_caption/vl_video5/in_image")
    return CaptionBatch(pixel_values=pixels, captions=["a dog", "a car"])


def gradients(model: VideoLlama) -> dict[str, Tensor]:
    model(batch()).loss.backward()
    return {name: p.grad for name, p in model.trainable_parameters() if p.grad is not None}


def kept_bytes(model: VideoLlama) -> int:
    """Size of what one forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(batch()).loss
    assert loss.requires_grad
    return sum(kept.values())


@pytest.fixture(scope="module")
def models() -> tuple[VideoLlama, VideoLlama]:
    plain, recomputing = build_golden(), build_golden()
    recompute_activations(recomputing.language_model)
    return plain, recomputing


def test_gradients_are_the_same(models: tuple[VideoLlama, VideoLlama]) -> None:
    plain, recomputed = (gradients(model) for model in models)
    assert plain.keys() == recomputed.keys()
    for name, gradient in plain.items():
        torch.testing.assert_close(recomputed[name], gradient, atol=1e-6, rtol=1e-5)


def test_less_is_kept_although_the_model_is_in_eval_mode(
    models: tuple[VideoLlama, VideoLlama],
) -> None:
    plain, recomputing = models
    assert not recomputing.language_model.training
    assert kept_bytes(recomputing) < 0.7 * kept_bytes(plain)


def test_calls_without_gradients_are_computed_once(models: tuple[VideoLlama, VideoLlama]) -> None:
    _, model = models
    calls = []
    layer = model.language_model.model.layers[0]
    handle = layer.mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    with torch.no_grad():
        model(batch())
    assert len(calls) == 1
    model(batch()).loss.backward()
    assert len(calls) == 3
    handle.remove()
