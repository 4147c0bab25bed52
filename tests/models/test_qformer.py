from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from tests.golden_model import build_golden, golden_settings
from video_llama.models.qformer import TemporalQFormer, video_branch
from video_llama.types import ConfigError

VIDEO, SOUND = (2, 3, 4, 56, 56), (2, 3, 1, 128, 204)


def noise(shape: tuple[int, ...], seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_more_steps_than_positions_are_refused_with_both_numbers() -> None:
    model = build_golden(max_frame_pos=3, max_audio_clips=2, random_init=True, ckpt=None)
    with pytest.raises(ConfigError, match=r"4 frames given, but model.max_frame_pos is 3;"):
        model.encode_video(noise(VIDEO))
    with pytest.raises(ConfigError, match=r"3 segments given, but model.max_audio_clips is 2;"):
        model.encode_audio(noise(SOUND))


def test_positions_are_stretched_where_that_is_allowed() -> None:
    sizes = {"max_frame_pos": 3, "max_audio_clips": 2, "random_init": True, "ckpt": None}
    model = build_golden(interpolate_positions=True, **sizes)
    assert model.encode_video(noise(VIDEO)).isfinite().all()
    assert model.encode_audio(noise(SOUND)).isfinite().all()
    branch = model.video_branch
    assert isinstance(branch, TemporalQFormer)
    learned = branch.position_embedding.weight
    stretched = branch.positions(learned, 5)
    assert torch.allclose(stretched[::2], learned)
    assert torch.allclose(stretched[1], (learned[0] + learned[1]) / 2)
    assert torch.equal(branch.positions(learned, 2), learned[:2])


def test_positions_start_as_wide_as_the_settings_say() -> None:
    wide, narrow = (
        video_branch(
            golden_settings(None, position_init_std=std), 8
        ).position_embedding.weight.detach()
        for std in (1.0, 0.02)
    )
    assert 0.8 < float(wide.std()) < 1.2
    assert 0.016 < float(narrow.std()) < 0.024


@torch.no_grad()
def reversed_apart(**changes: Any) -> float:
    """How far the tokens of a clip move when its frames come in reverse."""
    settings = golden_settings(None, **changes)
    branch = video_branch(settings, 8).eval()
    for parameter in branch.parameters():
        parameter.normal_(generator=torch.Generator().manual_seed(0))
    frames = noise((2, 4, settings.num_query_token, settings.qformer_config.hidden_size))
    return float((branch(frames) - branch(frames.flip(1))).abs().max())


def test_order_is_known_through_the_positions_alone() -> None:
    assert reversed_apart() > 1e-2
    assert reversed_apart(video_frame_positions=False) < 1e-3


def test_mean_pooling_keeps_the_queries_of_the_frames() -> None:
    queries = golden_settings(None).num_query_token
    changes = {"video_fusion": "mean", "num_video_query_token": queries}
    assert reversed_apart(**changes) < 1e-3
    model = build_golden("video", random_init=True, ckpt=None, **changes)
    frames = model.encode_frames(noise(VIDEO))
    expected = model.video_branch.proj(frames.mean(dim=1))
    assert torch.equal(model.temporal_video(frames), expected)
    trained = [name for name, _ in model.trainable_parameters()]
    assert trained == ["llama_proj.weight", "llama_proj.bias"]


def test_without_positions_any_number_of_frames_will_do() -> None:
    model = build_golden(video_frame_positions=False, max_frame_pos=3, random_init=True, ckpt=None)
    assert model.encode_video(noise(VIDEO)).isfinite().all()
