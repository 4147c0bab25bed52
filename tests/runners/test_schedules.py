from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest

from tests.reference import ROOT, SHARED, needs_shared
from video_llama.config.load import load_config
from video_llama.runners.optim import SCHEDULES, learning_rate
from video_llama.runners.settings import RunSettings
from video_llama.types import ConfigError

CONFIGS = {
    "vl_stage1": "visionbranch_stage1_pretrain",
    "vl_stage2": "visionbranch_stage2_finetune",
    "al_stage1": "audiobranch_stage1_pretrain",
    "al_stage2": "audiobranch_stage2_finetune",
}

POINTS = {
    "vl_stage1": {0: 1e-6, 1250: 5.05e-5, 2500: 9.809016994374948e-5, 12499: 8.000000031582734e-5},
    "vl_stage2": {0: 1e-6, 999: 2.9971e-5, 1000: 2.4999999999999998e-5, 1500: 2e-5},
    "al_stage1": {1: 1.0198e-6, 4999: 9.99802e-5, 5000: 9.809016994374948e-5, 12500: 9e-5},
    "al_stage2": {250: 1.9125e-5, 500: 2.866025403784439e-5, 2500: 1.1339745962155613e-5},
}
"""Learning rates of the original at some steps of its four configurations."""


def shipped(name: str) -> RunSettings:
    return load_config(ROOT / f"train_configs/{CONFIGS[name]}.yaml").run


@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_schedules_are_the_originals(name: str) -> None:
    settings = shipped(name)
    assert {step: learning_rate(step, settings) for step in POINTS[name]} == pytest.approx(
        POINTS[name], rel=1e-12
    )


@needs_shared
@pytest.mark.parametrize("name", CONFIGS)
def test_shipped_schedules_are_the_originals_at_every_recorded_step(name: str) -> None:
    table = json.loads((SHARED / "golden/text_tiny_tokenizer.json").read_text("utf-8"))["lr"][name]
    settings = shipped(name)
    for place, rate in table["lr"].items():
        epoch, step = map(int, place.split(","))
        done = epoch * settings.iters_per_epoch + step
        assert learning_rate(done, settings) == pytest.approx(rate, rel=1e-12), place


def test_warm_up_counts_the_steps_of_the_whole_run() -> None:
    settings = RunSettings(
        init_lr=1e-3, min_lr=1e-4, warmup_lr=1e-6, warmup_steps=25, max_epoch=4, iters_per_epoch=10
    )
    rates = [learning_rate(step, settings) for step in range(25)]
    steps = {round(b - a, 12) for a, b in pairwise(rates)}
    assert len(steps) == 1, "the original starts anew in every epoch"
    assert rates[0] == 1e-6


def test_cosine_ends_at_the_smallest_rate() -> None:
    settings = RunSettings(init_lr=1e-3, min_lr=1e-4, max_epoch=2, iters_per_epoch=10)
    assert learning_rate(0, settings) == pytest.approx(1e-3)
    assert learning_rate(10, settings) == pytest.approx((1e-3 + 1e-4) / 2)
    assert learning_rate(20, settings) == pytest.approx(1e-4)


def test_step_schedule_decays_per_epoch_down_to_the_smallest_rate() -> None:
    settings = RunSettings(
        lr_sched="linear_warmup_step_lr",
        init_lr=1.0,
        min_lr=0.3,
        warmup_lr=0.0,
        warmup_steps=4,
        lr_decay_rate=0.5,
        max_epoch=4,
        iters_per_epoch=10,
    )
    rates = [learning_rate(step, settings) for step in (0, 2, 4, 9, 10, 19, 20, 39)]
    assert rates == pytest.approx([0, 0.5, 1, 1, 0.5, 0.5, 0.3, 0.3])


def test_schedules_keep_the_originals_names() -> None:
    assert list(SCHEDULES) == ["linear_warmup_cosine_lr", "linear_warmup_step_lr"]
    with pytest.raises(ConfigError, match="learning-rate schedule"):
        SCHEDULES.get("cosine")


def test_every_rate_is_finite_for_the_shortest_run() -> None:
    settings = RunSettings(max_epoch=1, iters_per_epoch=1)
    assert math.isfinite(learning_rate(0, settings))
