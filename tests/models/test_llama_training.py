"""Rows without padding give the losses and gradients of padded ones."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import LlamaForCausalLM

from tests.golden_model import build_golden, golden
from video_llama.models import llama_training as packing
from video_llama.models.language_model import causal_loss
from video_llama.models.llama_training import (
    allow_packing,
    allows_packing,
    attend_by_segments,
    recompute_activations,
)
from video_llama.models.video_llama import VideoLlama
from video_llama.types import IGNORE_INDEX, CaptionBatch

LENGTHS = (9, 3, 1, 6)


def language_model() -> LlamaForCausalLM:
    return build_golden("video").language_model


def batch(*, left: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Embeddings, labels and mask of rows of `LENGTHS`."""
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(len(LENGTHS), 9, 64, generator=generator)
    labels = torch.randint(3, 500, (len(LENGTHS), 9), generator=generator)
    mask = torch.arange(9) < torch.tensor(LENGTHS)[:, None]
    mask = mask.flip(1) if left else mask
    return embeddings, labels.masked_fill(~mask, IGNORE_INDEX), mask


def loss_and_gradient(model: LlamaForCausalLM, rows: tuple[Tensor, Tensor, Tensor]) -> Any:
    embeddings = rows[0].clone().requires_grad_()
    loss, num_tokens = causal_loss(model, embeddings, *rows[1:])
    loss.backward()
    return loss.detach(), embeddings.grad, num_tokens


@pytest.mark.parametrize("recomputes", [False, True])
def test_loss_and_gradient_are_those_of_padded_rows(recomputes: bool) -> None:
    model = language_model()
    expected, gradient, num_tokens = loss_and_gradient(model, batch())
    allow_packing(model)
    assert allows_packing(model)
    if recomputes:
        recompute_activations(model)
    found, of_rows, tokens = loss_and_gradient(model, batch())
    assert tokens == num_tokens == sum(LENGTHS) - len(LENGTHS)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(of_rows, gradient, atol=1e-6, rtol=0)
    assert gradient.abs().max() > 1e-4


def test_a_segment_does_not_see_the_others() -> None:
    model = language_model()
    allow_packing(model)
    embeddings, labels, mask = batch()
    only_second = labels.clone()
    only_second[[0, 2, 3]] = IGNORE_INDEX
    changed = embeddings.clone()
    changed[[0, 2, 3]] += 1
    one, other = (causal_loss(model, e, only_second, mask)[0] for e in (embeddings, changed))
    torch.testing.assert_close(one, other, atol=1e-6, rtol=0)
    changed[1, 0] += 1
    assert abs(float(causal_loss(model, changed, only_second, mask)[0] - one)) > 1e-4


def test_calls_without_segments_are_as_before() -> None:
    embeddings, _, mask = batch(left=True)
    model = language_model()
    with torch.no_grad():
        expected = model(inputs_embeds=embeddings, attention_mask=mask.long()).logits
        allow_packing(model)
        found = model(inputs_embeds=embeddings, attention_mask=mask.long()).logits
    assert torch.equal(found[mask], expected[mask])


def test_the_whole_model_trains_with_packed_captions() -> None:
    clips = torch.randn(2, 3, 2, 56, 56, generator=torch.Generator().manual_seed(0))
    captions = CaptionBatch(pixel_values=clips, captions=["a red car", "a dog in the grey sea"])
    model = build_golden("video").train()
    torch.manual_seed(0)
    expected = model(captions).loss
    allow_packing(model.language_model)
    torch.manual_seed(0)
    torch.testing.assert_close(model(captions).loss, expected, atol=1e-5, rtol=0)


def test_the_kernel_of_a_gpu_is_called_with_the_same_segments(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A stand-in with the kernel's signature computes them one by one."""
    calls = []

    def varlen_attn(
        q: Tensor, k: Tensor, v: Tensor, *, cu_seq_q: Tensor, cu_seq_k: Tensor, **options: Any
    ) -> Tensor:
        calls.append((cu_seq_q.tolist(), cu_seq_k.tolist(), options))
        parts = []
        for start, stop in zip(cu_seq_q[:-1].tolist(), cu_seq_q[1:].tolist(), strict=True):
            rows = (states[start:stop].transpose(0, 1) for states in (q, k, v))
            parts.append(
                F.scaled_dot_product_attention(*rows, is_causal=True, scale=options["scale"])
            )
        return torch.cat(parts, dim=1).transpose(0, 1)

    kernels = pytest.importorskip("torch.nn.attention.varlen")
    query, key, value = torch.randn(3, 1, 4, 10, 8, generator=torch.Generator().manual_seed(0))
    module: Any = None
    arguments: dict[str, Any] = {"segments": [2, 5, 3], "scaling": 0.5}
    expected, _ = attend_by_segments(module, query, key, value, None, **arguments)
    monkeypatch.setattr(kernels, "varlen_attn", varlen_attn)
    monkeypatch.setattr(packing, "_has_kernel", lambda _: True)
    found, _ = attend_by_segments(module, query, key, value, None, **arguments)
    torch.testing.assert_close(found, expected)
    ((starts, others, options),) = calls
    assert starts == others == [0, 2, 7, 10]
    assert (options["max_q"], options["max_k"], options["window_size"]) == (5, 5, (-1, 0))


def caption_batch() -> CaptionBatch:
    pixels = golden().input("forward_caption/vl_video5/in_image")
    return CaptionBatch(pixel_values=pixels, captions=["a dog", "a car"])


def gradients(model: VideoLlama) -> dict[str, Tensor]:
    model(caption_batch()).loss.backward()
    return {name: p.grad for name, p in model.trainable_parameters() if p.grad is not None}


def kept_bytes(model: VideoLlama) -> int:
    """Size of what one forward pass keeps for the backward pass."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = model(caption_batch()).loss
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
        model(caption_batch())
    assert len(calls) == 1
    model(caption_batch()).loss.backward()
    assert len(calls) == 3
    handle.remove()
