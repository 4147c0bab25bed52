"""Plans of the shipped configurations, measured once for all tests."""

from __future__ import annotations

from dataclasses import replace
from functools import cache, partial
from typing import Any
from unittest import mock

from tests.reference import ROOT
from video_llama.apps.estimate import plan
from video_llama.apps.estimate.hardware import find_gpu
from video_llama.apps.estimate.measure import (
    StepCost,
    measure_answer,
    measure_training,
    meta_model,
)
from video_llama.apps.estimate.plan import ChatPlan, TrainingPlan, plan_chat, plan_training
from video_llama.apps.estimate.rows import BatchRow, question_row
from video_llama.config.load import load_config
from video_llama.config.schema import Config
from video_llama.models.video_llama import VideoLlama

STAGE_1 = "train_configs/visionbranch_stage1_pretrain.yaml"
STAGE_2 = "train_configs/visionbranch_stage2_finetune.yaml"
CHAT = "eval_configs/video_llama_eval_withaudio.yaml"
ONE_SET = {
    STAGE_1: ["datasets.cc_sbu_align=null"],
    STAGE_2: ["datasets.cc_sbu_align=null", "datasets.llava_instruct=null"],
}
"""Leaves one data set, so that one batch is measured."""

_costs: dict[str, StepCost] = {}


def config(name: str, *options: str) -> Config:
    return load_config(ROOT / name, [*ONE_SET.get(name, []), *options])


@cache
def model_of(name: str, size: str, *options: str) -> VideoLlama:
    return meta_model(config(name, *options), size)


def _measured(cfg: Config, model: VideoLlama, row: BatchRow, *, features_cached: bool) -> StepCost:
    """Measure a batch once, whatever the GPU, the data set's share and the storage of weights."""
    settings = replace(cfg.model, quantization="none")
    llm = model.language_model.config.hidden_size
    sizes = (row.frames, row.segments, row.media_tokens, row.text_tokens, row.labelled)
    key = repr((settings, cfg.run.batch_size_train, cfg.run.amp, llm, sizes, features_cached))
    if key not in _costs:
        _costs[key] = measure_training(cfg, model, row, features_cached=features_cached)
    return replace(_costs[key], parts=dict(_costs[key].parts))


def train(
    name: str, *options: str, gpu: str = "a100-80g", size: str = "7b", **values: Any
) -> TrainingPlan:
    cfg, device = config(name, *options), find_gpu(gpu)
    model = model_of(name, size, *(option for option in options if option.startswith("model.")))
    with mock.patch.object(plan, "measure_training", _measured):
        return plan_training(cfg, model, device, **{"gpus": 8, **values})


@cache
def _answer(size: str, new_tokens: int) -> tuple[StepCost, StepCost]:
    cfg = config(CHAT)
    return measure_answer(cfg, model_of(CHAT, size), question_row(cfg), new_tokens=new_tokens)


def _remembered_answer(size: str, *_: Any, new_tokens: int) -> tuple[StepCost, StepCost]:
    return _answer(size, new_tokens)


def chat(*options: str, gpu: str = "a100-40g", size: str = "7b", **values: Any) -> ChatPlan:
    cfg, device = config(CHAT, *options), find_gpu(gpu)
    with mock.patch.object(plan, "measure_answer", partial(_remembered_answer, size)):
        return plan_chat(cfg, model_of(CHAT, size, *options), device, **values)
