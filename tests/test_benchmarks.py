"""The reference arms of the benchmarks compute what ours compute: else a ratio means nothing."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch

from benchmarks import reference
from benchmarks.bench_model import Bench, settings_of
from video_llama.models.assembly import build_video_llama
from video_llama.models.language_model import causal_loss


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
