"""What is counted on the meta device is what torch counts and keeps in a real step."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.reference import ROOT
from video_llama.apps.estimate.hardware import on_cpu
from video_llama.apps.estimate.measure import (
    BACKWARD,
    OperationCounter,
    StepCost,
    measure_answer,
    measure_training,
    meta_model,
)
from video_llama.apps.estimate.rows import BatchRow, question_row, training_rows
from video_llama.config.load import load_config
from video_llama.config.schema import Config
from video_llama.models.build import build_video_llama
from video_llama.models.llama_training import recompute_activations
from video_llama.models.video_llama import VideoLlama
from video_llama.types import IGNORE_INDEX, CaptionBatch

BRANCHES = {
    "video": ["model.frozen_video_Qformer=false", "model.frozen_llama_proj=false"],
    "audio": ["model.frozen_audio_Qformer=false"],
}
CAPTION = "a red ball rolls over the floor and stops"


class Case:
    """A real model with a batch, and the row that describes it."""

    def __init__(self, cfg: Config) -> None:
        self.cfg = cfg
        self.model: VideoLlama = build_video_llama(cfg.model, device="cpu", seed=0).train()
        rows, side = cfg.run.batch_size_train, cfg.model.image_size
        frames = torch.randn(rows, 3, 4, side, side)
        self.batch = CaptionBatch(pixel_values=frames, captions=[CAPTION] * rows, prompt=None)
        media = cfg.model.num_video_query_token
        if cfg.model.trained_branch == "audio":
            media = cfg.model.num_audio_query_token
        ids, labels, _ = self.model.token_sequences(self.batch, media)
        (row,) = training_rows(cfg, ids.shape[1] - media)
        labelled = int((labels[0] != IGNORE_INDEX).sum())
        self.row: BatchRow = replace(row, frames=4, segments=0, labelled=labelled)

    def predicted(self, *, features_cached: bool = False) -> StepCost:
        model = meta_model(self.cfg)
        return measure_training(self.cfg, model, self.row, features_cached=features_cached)

    def counted(self) -> int:
        # torch counts attention on a CPU only where it is done in plain products.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.model(self.batch).loss.backward()
        return counter.get_total_flops()


def case(branch: str, *options: str) -> Case:
    overrides = [*BRANCHES[branch], "run.batch_size_train=3", "model.max_txt_len=64", *options]
    return Case(on_cpu(load_config(ROOT / "eval_configs/tiny.yaml", overrides)))


def flops(cost: StepCost) -> float:
    """Sum the operations, with a backward pass of attention as in plain products.

    The fused kernel computes five products there, of which one is the scores once more.
    """
    return sum(
        part.products + part.attention * (0.8 if name.endswith(BACKWARD) else 1.0)
        for name, part in cost.parts.items()
    )


@pytest.mark.parametrize(
    ("branch", "options"),
    [
        ("video", []),
        ("audio", []),
        ("video", ["model.freeze_vit=false", "model.freeze_qformer=false"]),
    ],
)
def test_operations_are_those_that_torch_counts(branch: str, options: list[str]) -> None:
    step = case(branch, *options)
    assert flops(step.predicted()) == pytest.approx(step.counted(), rel=1e-3)


def test_operations_with_recomputation() -> None:
    step = case("video", "model.use_grad_checkpoint=true")
    recompute_activations(step.model.language_model)
    assert flops(step.predicted()) == pytest.approx(step.counted(), rel=0.01)


def test_a_model_can_be_measured_twice() -> None:
    step = case("video", "model.use_grad_checkpoint=true")
    model = meta_model(step.cfg)
    first, second = (
        measure_training(step.cfg, model, step.row, features_cached=False) for _ in range(2)
    )
    assert first == second
    assert all(parameter.grad is None for parameter in model.parameters())


def test_cached_features_leave_the_encoders_out() -> None:
    step = case("video")
    whole, cached = step.predicted(), step.predicted(features_cached=True)
    encoders = {"vision_encoder", "frame_qformer"}
    assert whole.parts.keys() - cached.parts.keys() == encoders
    rest = {name: cost for name, cost in whole.parts.items() if name not in encoders}
    assert flops(cached) == sum(cost.flops for cost in rest.values()) - sum(
        0.2 * cost.attention for name, cost in rest.items() if name.endswith(BACKWARD)
    )


def test_frozen_parts_have_no_backward_pass_unless_something_trains_before_them() -> None:
    passes = {name for name in case("video").predicted().parts if name.endswith(BACKWARD)}
    assert passes == {
        f"{name}{BACKWARD}" for name in ("video_branch", "language_model", "output_layer")
    }


def test_operations_of_sound() -> None:
    step = case("audio")
    row = replace(step.row, frames=0, segments=3)
    cost = measure_training(step.cfg, meta_model(step.cfg), row, features_cached=False)
    sounds = torch.randn(3, 3, 1, 128, 204)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step.model.encode_segments(sounds, "audio")
    assert cost.parts["audio_encoder"].flops == counter.get_total_flops()


def saved_bytes(step: Case) -> int:
    """Count what autograd keeps for the backward pass, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in step.model.parameters()}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step.model(step.batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def test_kept_activations_are_what_autograd_saves() -> None:
    step = case("video")
    media = step.batch.pixel_values
    assert media is not None
    # The batch itself lives on too.
    expected = saved_bytes(step) + media.nbytes
    cost = step.predicted()
    assert cost.kept == pytest.approx(expected, rel=0.05)
    assert cost.kept < cost.peak < 2 * cost.kept


def test_half_precision_halves_the_traffic_of_a_trained_branch() -> None:
    step = case("video", "model.precision=bf16")
    lowered = replace(step.cfg, run=replace(step.cfg.run, amp=True))
    plain = step.predicted().parts["video_branch"]
    half = measure_training(lowered, meta_model(lowered), step.row, features_cached=False)
    found = half.parts["video_branch"]
    assert (plain.precision, found.precision) == ("fp32", "bf16")
    assert found.products == plain.products
    assert found.weights == plain.weights / 2


def test_an_answer_and_its_next_token() -> None:
    cfg = on_cpu(load_config(ROOT / "eval_configs/tiny.yaml"))
    model, row = meta_model(cfg), question_row(cfg)
    first, token = measure_answer(cfg, model, row, new_tokens=16)
    assert {"vision_encoder", "video_branch", "language_model"} <= set(first.parts)
    layers = token.parts["language_model"]
    matrices = [p for p in model.language_model.model.layers.parameters() if p.ndim == 2]
    assert layers.products == 2 * sum(p.numel() for p in matrices)
    assert layers.weights == sum(p.nbytes for p in matrices)
    # As many products per token while the prompt is read, which happens for all at once.
    assert first.parts["language_model"].products == row.length * layers.products


def test_memory_is_followed_until_it_is_given_back() -> None:
    counter = OperationCounter(torch.nn.Module())
    with counter:
        held = torch.empty(1000, device="meta")
        for _ in range(3):
            doubled = held * 2
        view = held[:10]
    assert counter.live == 2 * 4000
    assert counter.step.peak == 3 * 4000
    del doubled, view
    assert counter.live == 4000


def test_lookups_touch_their_rows_only() -> None:
    counter = OperationCounter(torch.nn.Module())
    table, ids = torch.empty(100_000, 8, device="meta"), torch.empty(2, device="meta")
    with counter:
        counter.run("lookup", lambda ids: torch.nn.functional.embedding(ids.long(), table), ids)
    cost = counter.step.parts["lookup"]
    assert cost.traffic < 1000
    assert cost.kernels == 2


def test_sizes_are_taken_from_the_llm_that_is_asked_for() -> None:
    cfg = load_config(ROOT / "eval_configs/video_llama_eval_only_vl.yaml")
    assert {
        name: sum(p.numel() for p in meta_model(cfg, name).language_model.parameters())
        for name in ("7b", "13b")
    } == {"7b": 6_738_415_616, "13b": 13_015_864_320}
