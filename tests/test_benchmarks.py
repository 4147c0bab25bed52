"""The reference arms of the benchmarks compute what ours compute: else a ratio means nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from benchmarks import bench_start, bench_train, reference
from benchmarks.bench_model import Bench, settings_of
from video_llama.config.build import build_model
from video_llama.config.load import load_config
from video_llama.models.build import build_video_llama
from video_llama.models.language_model import causal_loss
from video_llama.models.settings import ImageBindSettings, QFormerSettings, VitSettings
from video_llama.models.video_llama import VideoLlama
from video_llama.types import CaptionBatch


@pytest.fixture(scope="module")
def bench() -> Bench:
    args = argparse.Namespace(preset="tiny", device="cpu", frames=4, batch=2, repeats=1)
    model = build_video_llama(settings_of(args, Path()), device="cpu", seed=0)
    return Bench(model, args)


def test_the_reference_encoders_give_our_tokens(bench: Bench) -> None:
    model = bench.model
    with torch.no_grad(), reference.original_attention(model):
        video = reference.encode_video(model, bench.video)
        sound = reference.encode_audio(model, bench.audio, "audio")
        pictures = reference.encode_audio(model, bench.frames, "vision")
    with torch.no_grad():
        torch.testing.assert_close(video, model.encode_video(bench.video), atol=1e-4, rtol=0)
        torch.testing.assert_close(sound, model.encode_audio(bench.audio), atol=1e-4, rtol=0)
        ours = model.encode_audio(bench.frames, "vision")
    torch.testing.assert_close(pictures, ours, atol=1e-4, rtol=0)


def test_the_reference_loss_is_our_loss(bench: Bench) -> None:
    with torch.no_grad(), reference.original_attention(bench.model):
        theirs = reference.loss(bench.model, bench.embeds, bench.labels, bench.mask)
    with torch.no_grad():
        ours, _ = causal_loss(bench.model.language_model, bench.embeds, bench.labels, bench.mask)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=0)


def test_the_reference_answer_has_our_tokens(bench: Bench) -> None:
    prompt = bench.embeds[:1]
    with reference.original_attention(bench.model):
        theirs = reference.answer(bench.model, prompt, 8)
    # the end-of-text token is out of bounds in a benchmark, so that every answer is equally long
    assert bench._answer(prompt, 8) == theirs


def test_sdpa_is_restored_after_a_reference_arm(bench: Bench) -> None:
    with reference.original_attention(bench.model):
        assert bench.model.language_model.config._attn_implementation == "eager"
    assert bench.model.language_model.config._attn_implementation == "sdpa"
    assert all(block.attn.fused_attn for block in bench.model.vision_encoder.vit.blocks)


@pytest.mark.parametrize("branch", ["video", "audio"])
def test_both_arms_of_a_training_step_give_the_same_gradients(
    branch: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    towers = {"vision_embed_dim": 32, "vision_num_blocks": 1, "vision_num_heads": 2}
    sounds = {"audio_embed_dim": 32, "audio_num_blocks": 1, "audio_num_heads": 2}
    sizes = {
        "vit_config": VitSettings(embed_dim=32, depth=1, num_heads=2),
        "qformer_config": QFormerSettings(
            hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
        ),
        "imagebind_config": ImageBindSettings(**towers, **sounds, out_embed_dim=32),
    }
    llm = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1}
    monkeypatch.setattr(bench_train, "SMALL", sizes)
    monkeypatch.setattr(bench_train, "SMALL_LLM", {**llm, "num_attention_heads": 2})
    args = argparse.Namespace(preset="small", device="cpu", image_size=56)
    model = bench_train.built(args, branch).eval()
    video = torch.randn(2, 3, 3, 56, 56, generator=torch.Generator().manual_seed(0))
    batch = CaptionBatch(captions=[bench_train.CAPTION] * 2, pixel_values=video)
    bench_train.original_step(model, batch)
    expected = gradients(model)
    bench_train.our_step(model, batch)
    found = gradients(model)
    assert found.keys() == expected.keys()
    assert max(float(gradient.abs().max()) for gradient in expected.values()) > 1e-3
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], atol=1e-5, rtol=1e-3, msg=name)


def gradients(model: VideoLlama) -> dict[str, torch.Tensor]:
    """A copy of the gradient of everything that trains."""
    return {
        name: parameter.grad.clone()
        for name, parameter in model.trainable_parameters()
        if parameter.grad is not None
    }


def test_the_model_whose_start_is_measured_has_all_its_weights(tmp_path: Path) -> None:
    config = load_config(bench_start.write_model(tmp_path, layers=1))
    assert not config.model.random_init
    build_model(config)
