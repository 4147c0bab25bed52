from __future__ import annotations

import json
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from tests.full_model import full_model
from tests.golden_model import build_golden, golden
from tests.reference import ROOT, SHARED, needs_shared
from video_llama.config.load import load_config
from video_llama.models.settings import Branch
from video_llama.runners.optim import (
    SCHEDULES,
    build_optimizer,
    learning_rate,
    parameter_groups,
    step_seed,
)
from video_llama.runners.settings import RunSettings
from video_llama.types import CaptionBatch, ConfigError

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


def names(group: list[tuple[str, nn.Parameter]]) -> set[str]:
    return {name for name, _ in group}


@pytest.mark.parametrize("branch", ["video", "audio"])
def test_groups_are_the_originals_at_full_size(branch: Branch) -> None:
    full = full_model()
    keys = full.branches[branch]
    named = [
        (name, nn.Parameter(torch.empty(full.shapes[name], device="meta")))
        for name in keys["trainable_keys"]
    ]
    decayed, others = parameter_groups(named, 0.05)
    assert names(decayed["params"]) == set(keys["weight_decay_keys"])
    assert names(others["params"]) == set(keys["no_weight_decay_keys"])
    assert (decayed["weight_decay"], others["weight_decay"]) == (0.05, 0.0)


def test_optimizer_is_the_originals_adamw() -> None:
    named = [("proj.weight", nn.Parameter(torch.zeros(2, 2)))]
    defaults = build_optimizer(named, RunSettings(beta2=0.99)).defaults
    assert (defaults["betas"], defaults["eps"], defaults["fused"]) == ((0.9, 0.99), 1e-8, True)


@pytest.mark.parametrize(
    ("trace", "branch", "media"),
    [("vl", "video", "vl_video5"), ("al", "audio", "al_image4d")],
)
def test_six_steps_give_the_originals_losses_and_weights(
    trace: str, branch: Branch, media: str
) -> None:
    arrays = golden().case(f"train_trace/{trace}")
    model = build_golden(branch)  # in eval mode: the trace has no dropout
    batch = CaptionBatch(
        pixel_values=golden().input(f"forward_caption/{media}/in_image"),
        captions=["a brown dog rides a skateboard", "the car is red"],
    )
    optimizer = build_optimizer(model.trainable_parameters(), RunSettings(weight_decay=0.05))
    losses = []
    for rate in arrays["lrs"].whole().tolist():
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = model(batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses == pytest.approx(arrays["losses"].whole().tolist(), abs=1e-5)
    trained = dict(model.trainable_parameters())
    finals = [key for key in arrays if key.startswith("final:")]
    assert len(finals) == 2
    for key in finals:
        assert arrays[key].difference(trained[key.removeprefix("final:")]) < 1e-6, key


def test_seeds_differ_in_step_rank_and_run_and_repeat() -> None:
    places = [(seed, step, rank) for seed in (0, 42) for step in range(50) for rank in range(8)]
    seeds = [step_seed(*place) for place in places]
    assert len(set(seeds)) == len(places)
    assert seeds == [step_seed(*place) for place in places]
    assert step_seed(42, 3, 1) == 2656081186537212357
    assert max(seeds) < 2**63
