"""Files with every name and shape of the released ones, against full-size models of shapes."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.full_model import (
    blip2_flant5xxl,
    branch_file,
    eva_vit_g,
    full_model,
    imagebind_huge,
    minigpt4,
    stand_in,
    write,
)
from video_llama.models.build import build_video_llama, weight_sources
from video_llama.models.settings import ModelSettings
from video_llama.models.video_llama import VideoLlama
from video_llama.models.weights.files import open_weights
from video_llama.models.weights.load import match
from video_llama.models.weights.names import LOGIT_SCALE
from video_llama.models.weights.report import LoadReport
from video_llama.types import WeightsError

TOWERS = "ImageBind's unused towers"
BUFFERS = "constant buffers"
OWN_LLM = "BLIP-2's own language model"
ABOVE = "blocks and head above the features read"


@cache
def model_7b(*, equip_audio_branch: bool = True, llm: str = "llama-2-7b") -> VideoLlama:
    settings = ModelSettings(
        llama_model=f"nowhere/{llm}", equip_audio_branch=equip_audio_branch, vit_precision="fp16"
    )
    return build_video_llama(settings, device="meta", seed=0)


def report_of(
    tmp_path: Path, key: str, content: dict[str, Any], model: VideoLlama | None = None
) -> LoadReport:
    """The comparison of a file, given in the YAML as `key`, with a model."""
    model = model or model_7b()
    path = write(tmp_path / "file.pth", content)
    assert path.stat().st_size < 500_000
    (source,) = weight_sources(ModelSettings(llama_model="nowhere", **{key: str(path)}))
    return match(model, source, open_weights(path))


RELEASED: dict[str, tuple[str, Callable[[], dict[str, Any]], int, dict[str, int]]] = {
    "eva_vit_g": ("vit_ckpt", eva_vit_g, 511, {ABOVE: 17}),
    "blip2_pretrained_flant5xxl": (
        "q_former_model",
        blip2_flant5xxl,
        257,
        {BUFFERS: 1, OWN_LLM: 2},
    ),
    "blip2 with the text branch": (
        "q_former_model",
        lambda: blip2_flant5xxl(with_text_branch=True),
        257,
        {
            BUFFERS: 1,
            OWN_LLM: 2,
            "text branch of the Q-Former": 4,
            "heads of the Q-Former": 1,
        },
    ),
    "pretrained_minigpt4": ("llama_proj_model", minigpt4, 2, {}),
    "imagebind_huge": ("imagebind_ckpt_path", imagebind_huge, 569, {TOWERS: 742}),
    "VL_LLaMA_2_7B_Finetuned": ("ckpt", lambda: branch_file("video"), 58, {BUFFERS: 34}),
    "AL_LLaMA_2_7B_Finetuned": (
        "ckpt_2",
        lambda: branch_file("audio"),
        59,
        {BUFFERS: 35, TOWERS: 4},
    ),
    "whole model": (
        "ckpt",
        lambda: {"model": stand_in(full_model().shapes)},
        1744,
        {BUFFERS: 35, TOWERS: 742},
    ),
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_file_fits(name: str, tmp_path: Path) -> None:
    key, content, num_loaded, not_needed = RELEASED[name]
    report = report_of(tmp_path, key, content())
    assert report.missing == []
    assert report.unexpected == []
    assert report.wrong_shape == []
    assert len(report.loaded) == num_loaded
    assert dict(report.not_needed) == not_needed
    report.check(model_7b().settings, model_7b().language_model.config)
    assert str(num_loaded) in str(report)
    assert all(str(count) in str(report) for count in not_needed.values())


def test_released_files_fill_the_whole_model_but_its_llm(tmp_path: Path) -> None:
    loaded: set[str] = set()
    for key, content, _, _ in RELEASED.values():
        if content is not RELEASED["whole model"][1]:
            loaded |= {*report_of(tmp_path, key, content()).loaded}
    unused = {name for name in full_model().shapes if name.startswith("llama_model.")}
    ours = report_of(tmp_path, "ckpt", RELEASED["whole model"][1]()).loaded
    assert loaded == {*ours} - unused
    assert LOGIT_SCALE in loaded


def test_numbers_of_entries_are_those_of_the_original() -> None:
    assert len(branch_file("video")["model"]) == 92
    assert len(branch_file("audio")["model"]) == 98


@pytest.mark.parametrize("llm", ["vicuna-7b", "vicuna-13b"])
def test_vicuna_files_fit_the_model_of_their_size(llm: str, tmp_path: Path) -> None:
    width = {"vicuna-7b": 4096, "vicuna-13b": 5120}[llm]
    model = model_7b(llm=llm)
    report = report_of(tmp_path, "ckpt", branch_file("video", width), model)
    report.check(model.settings, model.language_model.config)
    assert len(report.loaded) == 58


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("ckpt", branch_file("video", 5120)),
        ("ckpt_2", branch_file("audio", 5120)),
        ("llama_proj_model", minigpt4(5120)),
    ],
)
def test_13b_file_on_7b_is_refused(key: str, content: dict[str, Any], tmp_path: Path) -> None:
    report = report_of(tmp_path, key, content)
    with pytest.raises(WeightsError) as error:
        report.check(model_7b().settings, model_7b().language_model.config)
    message = str(error.value)
    for part in (f"model.{key}", "file.pth", "llama_proj.", "[5120", "[4096", "13B", "7B"):
        assert part in message
    assert "model.llama_model" in message


def test_files_of_the_other_keys_are_refused(tmp_path: Path) -> None:
    report = report_of(tmp_path, "vit_ckpt", branch_file("video"))
    with pytest.raises(WeightsError, match=r"expected visual_encoder\.\*"):
        report.check(model_7b().settings, model_7b().language_model.config)
    report = report_of(tmp_path, "imagebind_ckpt_path", eva_vit_g())
    with pytest.raises(WeightsError, match=r"no tensor .* audio_encoder\.\*"):
        report.check(model_7b().settings, model_7b().language_model.config)


def test_parts_that_are_not_built_are_counted_and_named(tmp_path: Path) -> None:
    model = model_7b(equip_audio_branch=False)
    whole = report_of(tmp_path, "ckpt", {"model": stand_in(full_model().shapes)}, model)
    whole.check(model.settings, model.language_model.config)
    absent = {reason: n for reason, n in whole.not_needed.items() if "does not build" in reason}
    assert len(absent) == 2
    assert sum(absent.values()) == 569 + 58

    audio = report_of(tmp_path, "ckpt_2", branch_file("audio"), model)
    with pytest.raises(WeightsError, match="audio_branch, which this configuration does not build"):
        audio.check(model.settings, model.language_model.config)


def test_a_branch_file_does_not_count_as_imagebind(tmp_path: Path) -> None:
    report = report_of(tmp_path, "ckpt_2", branch_file("audio"))
    assert LOGIT_SCALE in report.loaded
    assert report.groups == {"audio_branch"}
