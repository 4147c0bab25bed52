"""Plans hold together: what fits, what is slower, what holds a run up."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.reference import ROOT
from video_llama.apps.estimate.hardware import BYTES, GPUS, find_gpu, gpu_rates
from video_llama.apps.estimate.inference import ChatPlan, plan_chat
from video_llama.apps.estimate.report import as_text, as_values
from video_llama.apps.estimate.shapes import llama_of
from video_llama.apps.estimate.training import TrainingPlan, plan_training
from video_llama.config.load import load_config
from video_llama.config.schema import Config
from video_llama.types import ConfigError

STAGE_1 = "train_configs/visionbranch_stage1_pretrain.yaml"
STAGE_2 = "train_configs/visionbranch_stage2_finetune.yaml"
CHAT = "eval_configs/video_llama_eval_withaudio.yaml"


def config(name: str, *options: str) -> Config:
    return load_config(ROOT / name, options)


def train(
    name: str, *options: str, gpu: str = "a100-80g", size: str = "7b", **values: Any
) -> TrainingPlan:
    cfg, device = config(name, *options), find_gpu(gpu)
    llama = llama_of(cfg.model.llama_model, size)
    return plan_training(cfg, llama, device, gpu_rates(device), **{"gpus": 8, **values})


def chat(*options: str, gpu: str = "a100-40g", size: str = "7b", **values: Any) -> ChatPlan:
    cfg, device = config(CHAT, *options), find_gpu(gpu)
    return plan_chat(
        cfg, llama_of(cfg.model.llama_model, size), device, gpu_rates(device), **values
    )


def test_the_original_run_fits_where_it_was_done() -> None:
    plan = train(STAGE_1)
    assert plan.fits
    assert plan.trained == 22_104_064
    assert 1 < plan.hours < 24
    assert 0.2 < plan.utilisation < 0.8
    assert sum(plan.flops_per_sample.values()) == pytest.approx(5.05e12, rel=0.05)


def test_times_add_up() -> None:
    plan = train(STAGE_1, cores=64)
    parts = plan.compute_seconds + plan.memory_seconds + plan.launch_seconds
    assert sum(plan.seconds_per_step.values()) == pytest.approx(parts)
    assert plan.step_seconds == pytest.approx(parts + plan.communication_seconds)
    assert plan.samples_per_second == pytest.approx(8 * 32 / plan.step_seconds)


def test_a_small_card_needs_a_small_batch_or_quantisation() -> None:
    assert not train(STAGE_1, gpu="rtx4090").fits
    assert train(STAGE_1, "run.batch_size_train=4", gpu="rtx4090").fits
    assert not train(STAGE_2, gpu="t4").fits
    assert train(STAGE_2, "model.quantization=nf4", gpu="t4").fits


def test_recomputation_trades_time_for_memory() -> None:
    plain, again = train(STAGE_2), train(STAGE_2, "model.use_grad_checkpoint=true")
    assert again.memory.activations < 0.2 * plain.memory.activations
    assert 1.05 < again.step_seconds / plain.step_seconds < 1.6


def test_fsdp_spreads_the_language_model_and_sends_it_around() -> None:
    whole, spread = train(STAGE_2, size="13b"), train(STAGE_2, "run.fsdp=true", size="13b")
    assert spread.memory.weights["language_model"] < 0.25 * whole.memory.weights["language_model"]
    layers = 2 * 40 * llama_of("x", "13b").layer_matrices * 2
    assert spread.communication_bytes - whole.communication_bytes == pytest.approx(7 / 8 * layers)


def test_the_feature_cache_takes_the_encoders_out() -> None:
    plain, cached = train(STAGE_1, cores=64), train(STAGE_1, features_cached=True)
    assert plain.step_seconds / cached.step_seconds > 2.5
    assert "vision_encoder" not in cached.flops_per_sample
    assert cached.loading_seconds == 0
    configured = train(STAGE_1, "run.feature_cache=cache")
    assert configured.step_seconds == cached.step_seconds


def test_few_cores_make_decoding_the_bottleneck() -> None:
    assert train(STAGE_1, cores=1).bottleneck == "decoding"
    assert train(STAGE_1, cores=64).bottleneck == "compute"


def test_gradients_are_exchanged_once_an_update() -> None:
    one, two = train(STAGE_2), train(STAGE_2, "run.accum_grad_iters=2")
    assert one.communication_bytes == pytest.approx(2 * 7 / 8 * 4 * 22_104_064)
    assert two.communication_bytes == pytest.approx(one.communication_bytes / 2)
    assert train(STAGE_2, gpus=1).communication_bytes == 0


def test_machines_exchange_over_the_slower_network() -> None:
    near, far = train(STAGE_2, gpus=8), train(STAGE_2, gpus=64)
    assert far.communication_seconds > 5 * near.communication_seconds
    assert far.samples_per_second < 8 * near.samples_per_second


def test_a_chat_on_one_card() -> None:
    plan = chat()
    assert plan.fits
    assert set(plan.seconds) >= {"vision_encoder", "audio_encoder", "language_model", "next token"}
    assert plan.compiled_tokens_per_second > 1.5 * plan.tokens_per_second
    assert not chat(size="13b", gpu="rtx3090").fits
    assert chat("model.quantization=nf4", size="13b", gpu="rtx3090").fits


def test_a_compiled_token_takes_the_reading_of_the_weights() -> None:
    plan, gpu = chat(), GPUS["a100-40g"]
    reading = llama_of("x", "7b").parameters * BYTES["bf16"] / (0.8 * gpu.bandwidth)
    assert 1 / plan.compiled_tokens_per_second == pytest.approx(reading, rel=0.1)


def test_fp16_parts_become_fp32_where_there_are_no_tensor_cores_for_bf16() -> None:
    rates = gpu_rates(GPUS["v100"])
    assert (rates.computed("bf16"), rates.computed("fp16")) == ("fp32", "fp16")
    assert (
        train(STAGE_1, gpu="v100").step_seconds
        > train(STAGE_1, "model.precision=fp16", gpu="v100").step_seconds
    )


def test_text_lengths_can_be_given() -> None:
    assert {item.text_tokens for item in train(STAGE_2, text_tokens=200).items} == {200}
    assert chat(text_tokens=500).item.length == 540


def test_every_data_set_has_its_share() -> None:
    items = {item.name: item for item in train(STAGE_1).items}
    assert items["webvid"].share == pytest.approx(100 / 124)
    assert (items["webvid"].frames, items["cc_sbu_align"].frames) == (8, 1)
    assert sum(item.share for item in train(STAGE_2).items) == pytest.approx(1)


def test_an_unknown_gpu_is_an_error_that_lists_them() -> None:
    with pytest.raises(ConfigError, match=r"--gpu: 'a100' given; did you mean .*cpu"):
        find_gpu("a100")


@pytest.mark.parametrize("name", sorted(GPUS))
def test_figures_of_the_table_are_plausible(name: str) -> None:
    gpu = GPUS[name]
    assert 1e10 < gpu.memory < 2e11
    assert gpu.peaks["fp16"] > gpu.peaks["fp32"]
    assert 0 < gpu.efficiency < 1
    # More than a hundred operations per byte on every one of them.
    assert gpu.peaks["fp16"] / gpu.bandwidth > 50


def test_reports_name_what_matters() -> None:
    gpu = GPUS["t4"]
    text = as_text(train(STAGE_1, gpu="t4"), gpu)
    for word in ("samples/s", "hours", "bottleneck", "DOES NOT FIT", "trained", "frozen"):
        assert word in text
    values = as_values(train(STAGE_1, gpu="t4"), gpu)
    assert values["kind"] == "training"
    assert values["memory"]["total"] == train(STAGE_1, gpu="t4").memory.total
    assert "tokens/s" in as_text(chat(), GPUS["a100-40g"])


def test_an_empty_data_section_is_an_error() -> None:
    cfg = replace(config(STAGE_1), datasets={})
    with pytest.raises(ConfigError, match="datasets: empty"):
        plan_training(cfg, llama_of("x"), GPUS["h100"], gpu_rates(GPUS["h100"]), gpus=1)
