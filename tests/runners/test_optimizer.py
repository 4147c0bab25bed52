from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.full_model import full_model
from tests.golden_model import build_golden, golden
from video_llama.models.settings import Branch
from video_llama.runners.optim import build_optimizer, parameter_groups, step_seed
from video_llama.runners.settings import RunSettings
from video_llama.types import CaptionBatch


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
