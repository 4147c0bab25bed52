"""Arithmetic and kept memory of a training step are what torch counts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from tests.reference import ROOT
from video_llama.apps.estimate import work
from video_llama.apps.estimate.batch import Item, training_items
from video_llama.apps.estimate.memory import branch_kept, llm_kept
from video_llama.apps.estimate.phases import training_phases
from video_llama.apps.estimate.shapes import llama_of, vit_tokens
from video_llama.apps.estimate.work import Work, trained_backward
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
    """A model, a batch and the item that describes it."""

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
        (item,) = training_items(cfg, ids.shape[1] - media)
        self.item: Item = replace(item, frames=4, labelled=int((labels[0] != IGNORE_INDEX).sum()))
        self.llama = llama_of(cfg.model.llama_model)

    def predicted(self, *, features_cached: bool = False) -> float:
        phases = training_phases(self.cfg, self.llama, self.item, features_cached=features_cached)
        return sum(phase.work.flops for phase in phases)

    def counted(self) -> int:
        # torch counts attention on a CPU only where it is done in plain products.
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
            self.model(self.batch).loss.backward()
        return counter.get_total_flops()


def case(branch: str, *options: str) -> Case:
    overrides = [*BRANCHES[branch], "run.batch_size_train=3", "model.max_txt_len=64", *options]
    return Case(load_config(ROOT / "eval_configs/tiny.yaml", overrides))


@pytest.mark.parametrize("branch", BRANCHES)
def test_operations_are_those_that_torch_counts(branch: str) -> None:
    step = case(branch)
    assert step.predicted() == pytest.approx(step.counted(), rel=0.01)


def test_operations_with_recomputation() -> None:
    step = case("video", "model.use_grad_checkpoint=true")
    recompute_activations(step.model.language_model)
    assert step.predicted() == pytest.approx(step.counted(), rel=0.01)


def test_operations_of_an_encoder_that_trains() -> None:
    step = case("video", "model.freeze_vit=false", "model.freeze_qformer=false")
    # The very first product has no gradient of its input.
    rows = 3 * 4 * (vit_tokens(step.cfg.model) - 1)
    stem = work.linear(rows, 3 * 14 * 14, step.cfg.model.vit_config.embed_dim).flops
    assert step.predicted() - stem == pytest.approx(step.counted(), rel=0.01)


def test_cached_features_leave_the_encoders_out() -> None:
    step = case("video")
    encoders = work.vit(step.cfg.model, 12) + work.frame_qformer(step.cfg.model, 12)
    saved = step.predicted() - step.predicted(features_cached=True)
    assert saved == pytest.approx(encoders.flops)


def test_operations_of_sound() -> None:
    step = case("audio")
    sounds = torch.randn(2, 3, 1, 128, 204)
    predicted = work.imagebind_sounds(step.cfg.model, 6).flops
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        step.model.encode_segments(sounds, "audio")
    assert predicted == pytest.approx(counter.get_total_flops(), rel=0.01)


def saved_bytes(step: Case) -> int:
    """What autograd keeps for the backward pass, weights aside."""
    weights = {p.untyped_storage().data_ptr() for p in step.model.parameters()}
    saved: dict[int, Tensor] = {}

    def pack(tensor: Tensor) -> Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            saved[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step.model(step.batch)
    return sum(tensor.untyped_storage().nbytes() for tensor in saved.values())


def test_kept_activations_are_what_autograd_saves(tmp_path: Path) -> None:
    step = case("video")
    kept = llm_kept(step.cfg, step.llama, 3 * step.item.length) + branch_kept(step.cfg, step.item)
    # The estimate leaves out small things, such as what the loss keeps of a small vocabulary.
    assert kept == pytest.approx(saved_bytes(step), rel=0.15)


def fields() -> Iterator[Work]:
    yield Work(1, 2, 3, 4, 5)
    yield Work(10, 20, 30, 40, 50)


def test_work_adds_up_field_by_field() -> None:
    one, ten = fields()
    assert one + ten == Work(11, 22, 33, 44, 55)
    assert one * 10 == ten
    assert trained_backward(one).flops == 2 * one.flops
