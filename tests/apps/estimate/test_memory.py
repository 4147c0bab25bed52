"""Memory of weights, of a step and of a chat, and what fits into which card."""

from __future__ import annotations

import pytest

from tests.apps.estimate.plans import CHAT, STAGE_1, STAGE_2, chat, config, model_of, train
from tests.golden_model import golden_settings
from tests.reference import ROOT
from video_llama.apps.estimate.measure import meta_model
from video_llama.apps.estimate.memory import (
    llm_bytes,
    part_weights,
    trained_parameters,
    weight_bytes,
)
from video_llama.config.load import load_config
from video_llama.models.build import build_video_llama


def test_parts_have_all_parameters_of_the_model() -> None:
    model = meta_model(load_config(ROOT / "eval_configs/tiny.yaml"))
    parts = part_weights(model)
    assert sum(part.parameters for part in parts.values()) == sum(
        parameter.numel() for parameter in model.parameters()
    )
    assert parts["language_model"].parameters == sum(
        parameter.numel() for parameter in model.language_model.parameters()
    )


def test_bytes_are_those_of_the_number_types() -> None:
    model = model_of(CHAT, "7b")
    parts = part_weights(model)
    assert sum(part.bytes for part in parts.values()) == sum(p.nbytes for p in model.parameters())
    assert (parts["vision_encoder"].precision, parts["frame_qformer"].precision) == ("fp16", "fp32")


def test_word_table_and_output_layer_are_not_quantised() -> None:
    model = model_of(CHAT, "7b")
    tables = 2 * 32000 * 4096
    plain, small = llm_bytes(model, "bf16"), llm_bytes(model, "nf4")
    layers = 6_738_415_616 - tables
    assert plain == 2 * 6_738_415_616
    # Norms keep their precision too.
    assert small == pytest.approx(0.516 * layers + 2 * tables, rel=1e-3)
    assert part_weights(model, quantization="nf4")["language_model"].bytes == small


@pytest.mark.parametrize("branch", ["video", "audio"])
def test_trained_parameters_are_those_with_gradients(branch: str) -> None:
    settings = golden_settings(branch)  # type: ignore[arg-type]
    model = build_video_llama(settings, device="meta", seed=0)
    expected = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert trained_parameters(model) == expected > 0


def test_the_audio_branch_trains_without_the_vision_encoder() -> None:
    name = "train_configs/audiobranch_stage1_pretrain.yaml"
    settings = config(name, "model.vit_ckpt=null", "model.q_former_model=null").model
    model = model_of(name, "7b")
    left_out = part_weights(model).keys() - weight_bytes(settings, model).keys()
    assert left_out == {"vision_encoder", "vision_norm", "frame_qformer"}
    settings.vit_ckpt = "eva_vit_g.pth"
    assert weight_bytes(settings, model).keys() == part_weights(model).keys()


def test_fsdp_spreads_the_language_model() -> None:
    settings, model = config(STAGE_2).model, model_of(STAGE_2, "13b")
    whole = weight_bytes(settings, model)["language_model"]
    assert weight_bytes(settings, model, shards=8)["language_model"] < 0.25 * whole


def test_a_small_card_needs_a_small_batch_or_quantisation() -> None:
    assert not train(STAGE_1, gpu="rtx4090").fits
    assert train(STAGE_1, "run.batch_size_train=4", gpu="rtx4090").fits
    assert not train(STAGE_2, gpu="t4").fits
    assert train(STAGE_2, "model.quantization=nf4", gpu="t4").fits


def test_a_chat_with_13b_needs_quantisation_on_24_gb() -> None:
    assert not chat(size="13b", gpu="rtx3090").fits
    assert chat("model.quantization=nf4", size="13b", gpu="rtx3090").fits


def test_the_sum_has_every_entry() -> None:
    memory = train(STAGE_1).memory
    entries = (memory.gradients, memory.optimiser, memory.activations, memory.temporary)
    assert memory.total == sum(memory.weights.values()) + sum(entries) + memory.reserved
    assert all(entries)
    assert memory.optimiser == 2 * memory.gradients
