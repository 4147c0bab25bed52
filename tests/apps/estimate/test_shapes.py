"""Parameters counted from settings are those of the modules."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.golden_model import golden_settings
from tests.reference import ROOT
from video_llama.apps.estimate.shapes import llama_of, parameters, trained_groups
from video_llama.config.load import load_config
from video_llama.models.build import build_video_llama
from video_llama.models.settings import ModelSettings
from video_llama.models.weights.names import group_of, original_name
from video_llama.types import ConfigError


def counted(settings: ModelSettings) -> Counter[str]:
    model = build_video_llama(settings, device="meta", seed=0)
    counts: Counter[str] = Counter()
    for name, parameter in model.named_parameters():
        counts[str(group_of(original_name(name)))] += parameter.numel()
    return counts


@pytest.mark.parametrize(
    "name",
    [
        "eval_configs/tiny.yaml",
        "train_configs/visionbranch_stage1_pretrain.yaml",
        "train_configs/audiobranch_stage1_pretrain.yaml",
    ],
)
def test_counts_are_those_of_the_modules(name: str) -> None:
    settings = load_config(ROOT / name).model
    assert parameters(settings, llama_of(settings.llama_model)) == counted(settings)


def test_odd_depths_and_counts_too() -> None:
    settings = golden_settings("audio", fusion_head_layers=3, max_frame_pos=7, num_query_token=5)
    settings.qformer_config.num_hidden_layers = 3
    assert parameters(settings, llama_of(settings.llama_model)) == counted(settings)


def test_trained_groups_are_what_has_gradients() -> None:
    for branch in ("video", "audio"):
        settings = golden_settings(branch)  # type: ignore[arg-type]
        model = build_video_llama(settings, device="meta", seed=0)
        groups = {group_of(name) for name, _ in model.trainable_parameters()}
        assert trained_groups(settings) == groups


def test_released_sizes_stand_in_for_a_missing_folder(tmp_path: Path) -> None:
    assert llama_of("ckpt/llama-2-7b-chat-hf").parameters == 6_738_415_616
    assert llama_of("ckpt/llama-2-13b-chat-hf").parameters == 13_015_864_320
    assert llama_of(str(tmp_path), "13b").hidden_size == 5120
    with pytest.raises(ConfigError, match="--llama: '70b' given"):
        llama_of("x", "70b")
