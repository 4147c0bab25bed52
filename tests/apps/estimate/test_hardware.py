"""Figures of GPUs are plausible, and this machine's are measured."""

from __future__ import annotations

import pytest

from tests.reference import ROOT
from video_llama.apps.estimate.hardware import (
    GPUS,
    find_gpu,
    on_cpu,
    this_machine,
)
from video_llama.config.load import load_config
from video_llama.types import ConfigError


def test_an_unknown_gpu_is_an_error_that_lists_them() -> None:
    with pytest.raises(ConfigError, match=r"--gpu: 'a100' given; did you mean .*cpu"):
        find_gpu("a100")


@pytest.mark.parametrize("name", sorted(GPUS))
def test_figures_of_the_table_are_plausible(name: str) -> None:
    gpu = GPUS[name]
    assert 1e10 < gpu.memory < 2e11
    assert gpu.peaks["fp16"] > gpu.peaks["fp32"]
    assert 0 < gpu.efficiency < 1
    # More than fifty operations per byte on every one of them.
    assert gpu.peaks["fp16"] / gpu.bandwidth > 50


def test_fp16_is_kept_where_there_are_no_tensor_cores_for_bf16() -> None:
    gpu = GPUS["v100"]
    assert (gpu.computed("bf16"), gpu.computed("fp16")) == ("fp32", "fp16")


def test_this_machine_has_memory_and_rates() -> None:
    machine = this_machine()
    assert machine.memory > 1e9
    assert machine.peaks["fp32"] > 1e8
    assert not machine.overlaps
    assert (
        1e7 < machine.product_rate("fp32", 64, 64, 64) == machine.product_rate("bf16", 64, 64, 64)
    )
    assert 0 < machine.launch < 1e-2
    assert min(machine.moved, machine.stream, machine.attention_efficiency) > 0


def test_a_cpu_computes_half_precision_in_fp32() -> None:
    cfg = load_config(ROOT / "train_configs/visionbranch_stage1_pretrain.yaml")
    changed = on_cpu(cfg)
    assert (cfg.model.vit_precision, changed.model.vit_precision) == ("fp16", "fp32")
    assert changed.model.precision == cfg.model.precision == "bf16"
    assert not changed.run.amp
