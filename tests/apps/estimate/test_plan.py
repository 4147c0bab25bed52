"""Plans hold together: what is slower, what holds a run up, what is sent."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.apps.estimate.plans import CHAT, STAGE_1, STAGE_2, chat, config, model_of, train
from tests.reference import ROOT
from video_llama.apps.estimate.hardware import BYTES, GPUS
from video_llama.apps.estimate.measure import Cost
from video_llama.apps.estimate.memory import layer_matrices
from video_llama.apps.estimate.plan import (
    Seconds,
    communication,
    plan_training,
    seconds_of,
)
from video_llama.apps.estimate.rows import question_row, training_rows
from video_llama.config.load import load_config
from video_llama.types import ConfigError


def test_the_original_run_fits_where_it_was_done() -> None:
    plan = train(STAGE_1)
    assert plan.fits
    assert plan.trained == 22_104_064
    assert 1 < plan.hours < 24
    assert 0.2 < plan.utilisation < 0.8
    assert sum(plan.flops_per_sample.values()) == pytest.approx(5.78e12, rel=0.05)


def test_times_add_up() -> None:
    plan = train(STAGE_1, "run.num_workers=64", cores=64)
    parts = plan.compute_seconds + plan.memory_seconds + plan.launch_seconds
    assert sum(plan.seconds_per_step.values()) == pytest.approx(parts)
    assert plan.step_seconds == pytest.approx(parts + plan.communication_seconds)
    assert plan.samples_per_second == pytest.approx(8 * 32 / plan.step_seconds)


def test_recomputation_trades_time_for_memory() -> None:
    plain, again = train(STAGE_2), train(STAGE_2, "model.use_grad_checkpoint=true")
    assert again.memory.activations < 0.2 * plain.memory.activations
    assert 1.05 < again.step_seconds / plain.step_seconds < 1.6


def test_the_feature_cache_takes_the_encoders_out() -> None:
    plain, cached = (
        train(STAGE_1, "run.num_workers=64", cores=64),
        train(STAGE_1, features_cached=True),
    )
    assert plain.step_seconds / cached.step_seconds > 2.5
    assert "vision_encoder" not in cached.flops_per_sample
    assert cached.loading_seconds == 0
    configured = train(STAGE_1, "run.feature_cache=cache")
    assert configured.step_seconds == cached.step_seconds


def test_few_cores_make_decoding_the_bottleneck() -> None:
    assert train(STAGE_1, cores=1).bottleneck == "decoding"
    assert train(STAGE_1, "run.num_workers=64", cores=64).bottleneck == "compute"


def test_gradients_are_exchanged_once_an_update() -> None:
    one, two = train(STAGE_2), train(STAGE_2, "run.accum_grad_iters=2")
    assert one.communication_bytes == pytest.approx(2 * 7 / 8 * 4 * 22_104_064)
    assert two.communication_bytes == pytest.approx(one.communication_bytes / 2)
    assert train(STAGE_2, gpus=1).communication_bytes == 0


def test_machines_exchange_over_the_slower_network() -> None:
    near, far = train(STAGE_2, gpus=8), train(STAGE_2, gpus=64)
    assert far.communication_seconds > 5 * near.communication_seconds
    assert far.samples_per_second < 8 * near.samples_per_second


def test_fsdp_sends_the_language_model_around() -> None:
    cfg, model = config(STAGE_2, "run.fsdp=true"), model_of(STAGE_2, "13b")
    sent, _ = communication(cfg, model, GPUS["a100-80g"], gpus=8, hidden_behind=0)
    gathered = sent - 2 * 7 / 8 * 4 * train(STAGE_2, size="13b", gpus=1).trained
    assert gathered == pytest.approx(2 * 7 / 8 * 40 * layer_matrices(model) * 2)


def test_a_chat_on_one_card() -> None:
    plan = chat()
    assert plan.fits
    assert set(plan.seconds) >= {"vision_encoder", "audio_encoder", "language_model", "next token"}
    assert plan.compiled_tokens_per_second > 1.5 * plan.tokens_per_second


def test_a_compiled_token_takes_the_reading_of_the_weights() -> None:
    plan, gpu = chat(), GPUS["a100-40g"]
    reading = plan.parameters["language_model"] * BYTES["bf16"] / (0.8 * gpu.bandwidth)
    assert 1 / plan.compiled_tokens_per_second == pytest.approx(reading, rel=0.1)


def test_a_precision_that_a_card_lacks_is_computed_in_fp32() -> None:
    gpu = GPUS["v100"]
    half, unknown = (Cost(products=1e12, precision=name) for name in ("fp16", "bf16"))
    assert sum(seconds_of(unknown, gpu)) > 5 * sum(seconds_of(half, gpu))


def test_quantised_weights_are_read_faster_and_computed_slower() -> None:
    gpu = GPUS["a100-80g"]
    token = Cost(products=1e9, weights=1e9, shape=(1, 4096, 4096), precision="bf16")
    batch = replace(token, products=1e13, shape=(4096, 4096, 4096))
    plain, small = seconds_of(token, gpu), seconds_of(token, gpu, storage="nf4")
    assert small.memory == pytest.approx(plain.memory * 0.516 / 2)
    assert seconds_of(batch, gpu, storage="int8").compute == 2 * seconds_of(batch, gpu).compute


def test_launches_show_where_they_take_longer_than_the_work() -> None:
    gpu = GPUS["h100"]
    assert seconds_of(Cost(traffic=1e12, kernels=10), gpu).launches == 0
    assert seconds_of(Cost(kernels=10), gpu) == Seconds(launches=10 * gpu.launch)


def test_text_lengths_can_be_given() -> None:
    cfg = load_config(ROOT / STAGE_2)
    assert {row.text_tokens for row in training_rows(cfg, 200)} == {200}
    assert question_row(config(CHAT), 500).length == 540


def test_every_data_set_has_its_share() -> None:
    rows = {row.name: row for row in training_rows(load_config(ROOT / STAGE_1))}
    assert rows["webvid"].share == pytest.approx(100 / 124)
    assert (rows["webvid"].frames, rows["cc_sbu_align"].frames) == (8, 1)
    shares = [row.share for row in training_rows(load_config(ROOT / STAGE_2))]
    assert sum(shares) == pytest.approx(1)


def test_an_empty_data_section_is_an_error() -> None:
    cfg = replace(config(STAGE_1), datasets={})
    gpu = GPUS["h100"]
    with pytest.raises(ConfigError, match="datasets: empty"):
        plan_training(cfg, model_of(STAGE_1, "7b"), gpu, gpus=1)
