"""Number formats of the frozen parts: what is stored how, and how close the results stay."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from tests.golden_model import build_golden, golden, golden_model
from video_llama.models import precision
from video_llama.models.precision import Precision, cast_floating
from video_llama.types import CaptionBatch

BF16 = torch.bfloat16


def dtypes(module: nn.Module) -> set[torch.dtype]:
    return {parameter.dtype for parameter in module.parameters()}


def closeness(computed: Tensor, expected: Tensor) -> float:
    """Smallest cosine similarity of any two tokens that should be equal."""
    return float(F.cosine_similarity(computed.float(), expected.float(), dim=-1).min())


@pytest.fixture
def video() -> Tensor:
    return golden().input("encode_video/video5/in_image")


@pytest.fixture
def sound() -> Tensor:
    return golden().input("encode_audio/audio4/in_audio")


@torch.no_grad()
def test_vision_encoder_in_bf16(video: Tensor) -> None:
    model = build_golden(vit_precision="bf16")
    assert model.vision_encoder is not None
    assert dtypes(model.vision_encoder.vit) == {BF16}
    assert {buffer.dtype for buffer in model.vision_encoder.vit.buffers()} == {BF16}
    assert dtypes(model.vision_encoder.norm) == {torch.float32}
    others = [part for name, part in model.named_children() if name != "vision_encoder"]
    assert set().union(*map(dtypes, others)) == {torch.float32}
    tokens = model.encode_video(video)
    assert tokens.dtype is torch.float32
    assert closeness(tokens, golden_model().encode_video(video)) > 0.999


@torch.no_grad()
def test_imagebind_in_bf16(sound: Tensor) -> None:
    model = build_golden(imagebind_precision="bf16")
    encoder = model.audio_encoder
    assert encoder is not None
    assert dtypes(encoder) == {BF16}
    assert encoder.get_buffer("modality_postprocessors.audio.1.log_logit_scale").dtype is (
        torch.float32
    )
    embeddings = encoder(sound, "audio")
    assert embeddings.dtype is torch.float32
    assert torch.allclose(embeddings.norm(dim=-1), torch.tensor(20.0), atol=1e-3)
    assert closeness(model.encode_audio(sound), golden_model().encode_audio(sound)) > 0.99


@torch.no_grad()
def test_language_model_in_bf16(video: Tensor) -> None:
    model = build_golden(precision="bf16")
    assert dtypes(model.language_model) == {BF16}
    assert model.language_model.model.rotary_emb.inv_freq.dtype is torch.float32
    batch = CaptionBatch(pixel_values=video, captions=["a red car", "a dog"])
    assert model.embed(torch.tensor([[1, 20]]), None).dtype is BF16
    losses = [m(batch).loss for m in (model, golden_model())]
    assert losses[0].dtype is torch.float32
    assert torch.allclose(*losses, rtol=0.02)


def test_fp16_becomes_fp32_on_a_cpu(video: Tensor) -> None:
    names = {"vit_precision": "fp16", "imagebind_precision": "fp16", "precision": "fp16"}
    model = build_golden(**names)
    assert dtypes(model) == {torch.float32}
    assert torch.equal(model.encode_video(video), golden_model().encode_video(video))


@pytest.mark.parametrize(
    ("name", "device", "dtype"),
    [
        ("fp32", "cuda", torch.float32),
        ("bf16", "cuda", BF16),
        ("fp16", "cuda", torch.float16),
        ("bf16", "cpu", BF16),
        ("fp16", "cpu", torch.float32),
    ],
)
def test_formats_by_device(name: str, device: str, dtype: torch.dtype) -> None:
    assert Precision.named(name, device) == Precision(dtype, device)


def test_a_trained_vision_encoder_keeps_fp32_weights() -> None:
    model = build_golden(freeze_vit=False, vit_precision="bf16")
    assert model.vision_encoder is not None
    assert dtypes(model.vision_encoder) == {torch.float32}


@torch.no_grad()
def test_frozen_parts_ignore_the_callers_autocast(video: Tensor, sound: Tensor) -> None:
    model = golden_model()
    frames, segments = model.encode_frames(video), model.encode_segments(sound, "audio")
    with torch.autocast("cpu", dtype=BF16):
        assert torch.equal(model.encode_frames(video), frames)
        assert torch.equal(model.encode_segments(sound, "audio"), segments)
        assert model.temporal_video(frames).dtype is BF16


def test_training_under_autocast_stays_close(video: Tensor) -> None:
    model, batch = build_golden(), CaptionBatch(pixel_values=video, captions=["a red car", "a dog"])
    gradients = []
    for enabled in (False, True):
        model.zero_grad()
        with torch.autocast("cpu", dtype=BF16, enabled=enabled):
            loss = model(batch).loss
        loss.backward()
        assert loss.dtype is torch.float32
        gradients.append(torch.cat(list(_gradients(model))))
    assert closeness(*gradients) > 0.99


def _gradients(model: nn.Module) -> Iterator[Tensor]:
    for parameter in model.parameters():
        if parameter.grad is not None:
            assert parameter.grad.dtype is torch.float32
            yield parameter.grad.flatten()


def test_casting_leaves_whole_numbers_alone() -> None:
    module = nn.BatchNorm1d(2)
    cast_floating(module, BF16)
    assert module.weight.dtype is module.running_mean.dtype is BF16
    assert module.num_batches_tracked.dtype is torch.int64


@pytest.mark.parametrize(("status", "limit"), [(0, None), (-4, "AVX512_CORE_BF16")])
def test_bf16_is_kept_off_a_matrix_unit_that_does_not_work(
    status: int, limit: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ONEDNN_MAX_CPU_ISA", raising=False)
    monkeypatch.setattr(precision.Path, "exists", lambda path: True)
    monkeypatch.setattr(precision.Path, "read_text", lambda path: "flags: avx512f amx_bf16")
    finished = subprocess.CompletedProcess([], status)
    monkeypatch.setattr(precision.subprocess, "run", lambda *args, **kwargs: finished)
    precision.avoid_broken_amx.__wrapped__()
    # set where monkeypatch removes it again
    assert os.environ.get("ONEDNN_MAX_CPU_ISA") == limit
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
