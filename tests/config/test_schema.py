"""The rules between settings, and that every setting is explained."""

from __future__ import annotations

import ast
import math
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

from tests.reference import ROOT
from video_llama.config.schema import Config
from video_llama.datasets.base import DATASETS, BuildInfo, DatasetSettings
from video_llama.datasets.cc_sbu_align import CcSbuSettings
from video_llama.datasets.llava_instruct import LlavaInstructSettings
from video_llama.datasets.webvid import WebvidSettings
from video_llama.datasets.webvid_instruct import WebvidInstructSettings
from video_llama.models.settings import (
    ImageBindSettings,
    ModelSettings,
    QFormerSettings,
)
from video_llama.processors.settings import AudioSettings, VideoTrainSettings
from video_llama.runners.settings import RunSettings
from video_llama.types import ConfigError

SETTINGS_FILES = [
    *sorted((ROOT / "video_llama").glob("*/settings.py")),
    *(
        path
        for path in sorted((ROOT / "video_llama/datasets").glob("*.py"))
        if "@DATASETS.register" in path.read_text()
    ),
]


def model(**given: Any) -> ModelSettings:
    return ModelSettings(**{"llama_model": "llama", **given})


def config(entries: dict[str, DatasetSettings], **given: Any) -> Config:
    return Config(model=model(**given), datasets=entries)


VIDEO = {"equip_audio_branch": False, "frozen_video_Qformer": False, "frozen_llama_proj": False}
AUDIO = {"frozen_audio_Qformer": False}


def undocumented(node: ast.ClassDef) -> list[str]:
    """The fields of a class that no string literal follows."""
    return [
        f"{node.name}.{ast.unparse(field.target)}"
        for field, after in zip(node.body, [*node.body[1:], None], strict=True)
        if isinstance(field, ast.AnnAssign)
        and not (isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant))
    ]


@pytest.mark.parametrize("path", SETTINGS_FILES, ids=lambda path: path.parent.name)
def test_every_setting_has_a_line_that_explains_it(path: Path) -> None:
    classes = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.ClassDef)]
    assert classes
    assert [name for node in classes for name in undocumented(node)] == []


def test_there_are_settings_files_of_four_packages() -> None:
    names = {path.parent.name for path in SETTINGS_FILES}
    assert {"models", "datasets", "processors", "runners"} <= names


@pytest.mark.parametrize(
    ("given", "template", "prompt", "end_sym"),
    [
        ({"model_type": "pretrain_vicuna"}, "vicuna", "###Human: {} ###Assistant: ", "###"),
        (
            {"model_type": "pretrain_llama_v2"},
            "llama_v2",
            "[INST] <<SYS>>\n \n<</SYS>>\n\n{} [/INST] ",
            "</s>",
        ),
    ],
)
def test_model_type_gives_template_prompt_and_end_symbol(
    given: dict[str, Any], template: str, prompt: str, end_sym: str
) -> None:
    settings = model(**given)
    assert (settings.template, settings.prompt_template) == (template, prompt)
    assert settings.end_sym == end_sym


def test_template_goes_before_model_type() -> None:
    settings = model(model_type="pretrain_vicuna", template="llama_v2")
    assert (settings.template, settings.end_sym) == ("llama_v2", "</s>")


def test_what_is_set_stays() -> None:
    settings = model(end_sym="!", prompt_template="<{}>", **VIDEO)
    assert (settings.end_sym, settings.prompt_template) == ("!", "<{}>")


@pytest.mark.parametrize("branch", [VIDEO, AUDIO], ids=["video", "audio"])
def test_stage_1_ends_captions_with_a_newline(branch: dict[str, Any]) -> None:
    assert model(**branch).end_sym == "\n"
    assert model(**branch, prompt_path="prompts.txt").end_sym == "###"


@pytest.mark.parametrize(
    ("given", "branch"),
    [
        ({}, None),
        ({"frozen_llama_proj": False}, None),
        (VIDEO, "video"),
        (AUDIO, "audio"),
        ({**VIDEO, "frozen_audio_Qformer": False}, "video"),
        ({**VIDEO, "equip_audio_branch": True}, "video"),
    ],
)
def test_trained_branch(given: dict[str, Any], branch: str | None) -> None:
    assert model(**given).trained_branch == branch


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        (
            {"frozen_video_Qformer": False, **AUDIO},
            ["frozen_audio_Qformer: false", "frozen_video_Qformer: false", "one after the other"],
        ),
        ({**AUDIO, "frozen_llama_proj": False}, ["frozen_llama_proj: false", "to true"]),
        ({**AUDIO, "equip_audio_branch": False}, ["equip_audio_branch is false"]),
        ({"low_resource": True, "quantization": "nf4"}, ["low_resource: true", "nf4"]),
        ({"prompt_template": "no place"}, ["prompt_template: 'no place'", "{}"]),
        ({"image_size": 225}, ["image_size: 225", "patch_size (14)"]),
        ({"image_size": 0}, ["image_size: 0", "at least 1"]),
        ({"drop_path_rate": 1.0}, ["drop_path_rate: 1.0"]),
        ({"num_query_token": 0}, ["num_query_token: 0"]),
        ({"num_query_token": 10**9}, ["num_query_token: 1000000000", "at most 4096"]),
        ({"max_txt_len": 10**9}, ["max_txt_len", "at most 32768"]),
        ({"image_size": 14 * 10**6}, ["image_size", "at most 4096"]),
        ({"fusion_head_layers": 0}, ["fusion_head_layers: 0"]),
        (
            {"video_fusion": "mean", "num_video_query_token": 16},
            ["num_video_query_token: 16", "num_query_token (32)"],
        ),
    ],
)
def test_a_model_that_cannot_be_is_refused(given: dict[str, Any], facts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        model(**given)
    for fact in facts:
        assert fact in str(caught.value)


def test_heads_divide_widths() -> None:
    with pytest.raises(ConfigError, match=r"hidden_size: 10 .*num_attention_heads \(3\)"):
        QFormerSettings(hidden_size=10, num_attention_heads=3)
    with pytest.raises(ConfigError, match=r"audio_embed_dim: 10 .*audio_num_heads \(12\)"):
        ImageBindSettings(audio_embed_dim=10)


def test_low_resource_is_the_old_name_of_int8() -> None:
    assert model(low_resource=True).quantization == "int8"
    assert model().quantization == "none"


def test_imagebind_is_a_file_or_its_folder(tmp_path: Path) -> None:
    assert model().imagebind_file is None
    assert model(imagebind_ckpt_path="a/b.pth").imagebind_file == Path("a/b.pth")
    assert model(imagebind_ckpt_path="a/").imagebind_file == Path("a/imagebind_huge.pth")
    (tmp_path / "imagebind_huge.safetensors").touch()
    folder = model(imagebind_ckpt_path=str(tmp_path))
    assert folder.imagebind_file == tmp_path / "imagebind_huge.safetensors"
    (tmp_path / "ears").touch()
    assert model(imagebind_ckpt_path=str(tmp_path / "ears")).imagebind_file == tmp_path / "ears"


@pytest.mark.parametrize(
    ("given", "fact"),
    [
        ({"device": "gpu"}, "auto, cuda, mps, cpu, meta, cuda:N"),
        ({"min_lr": 1.0}, "min_lr: 1.0"),
        ({"beta2": 1.0}, "beta2: 1.0"),
        ({"max_bad_fraction": 1.5}, "max_bad_fraction: 1.5"),
        ({"accum_grad_iters": 0}, "accum_grad_iters: 0"),
        ({"seed": -1}, "seed: -1"),
        ({"seed": 2**63 - 1}, "at most 4611686018427387904"),
        ({"num_workers": 10**9}, "num_workers: 1000000000"),
        ({"init_lr": float("inf")}, "init_lr: inf"),
    ],
)
def test_a_run_that_cannot_be_is_refused(given: dict[str, Any], fact: str) -> None:
    with pytest.raises(ConfigError) as caught:
        RunSettings(**given)
    assert fact in str(caught.value)


def test_a_card_may_be_chosen_by_number() -> None:
    assert RunSettings(device="cuda:1").device == "cuda:1"


def test_warm_up_starts_at_the_learning_rate_unless_set() -> None:
    assert RunSettings(init_lr=0.5).warmup_lr == 0.5
    for lost in (math.nan, math.inf):
        with pytest.raises(ConfigError, match=f"warmup_lr: {lost} given, a finite number of at"):
            RunSettings(warmup_lr=lost)
    assert RunSettings(init_lr=0.5, warmup_lr=0.0).warmup_lr == 0.0


def test_every_run_setting_has_a_default() -> None:
    assert len(fields(RunSettings())) > 30


@pytest.mark.parametrize("name", list(DATASETS))
def test_every_data_set_has_a_complete_entry(name: str) -> None:
    entry = DATASETS.get(name)()
    config({name: entry})
    assert entry.vis_processor.train is not None or entry.audio_processor.train is not None
    assert (entry.model_type, entry.tokenizer_name) == ("vicuna", "llama")
    assert entry.num_video_query_token == 32


def test_media_positions_are_those_of_the_branch_that_trains() -> None:
    entry = LlavaInstructSettings()
    config({"llava_instruct": entry}, **AUDIO)
    assert entry.num_video_query_token == 8
    with pytest.raises(ConfigError, match=r"num_video_query_token: 32 .*is 8"):
        config({"llava_instruct": LlavaInstructSettings(num_video_query_token=32)}, **AUDIO)
    config({"cc_sbu": CcSbuSettings(num_video_query_token=32)}, **AUDIO)  # no conversations


def test_conversation_format_of_data_and_model_agree() -> None:
    with pytest.raises(
        ConfigError, match=r"^datasets\.webvid_instruct\.model_type: llama_v2 .*vicuna"
    ):
        config({"webvid_instruct": WebvidInstructSettings(model_type="llama_v2")})


def webvid(num_frames: int, num_clips: int = 1) -> dict[str, DatasetSettings]:
    entry = WebvidSettings()
    entry.vis_processor.train = VideoTrainSettings(n_frms=num_frames)
    entry.audio_processor.train = AudioSettings(clips_per_video=num_clips)
    return {"webvid": entry}


def test_more_frames_or_clips_than_positions_need_permission() -> None:
    with pytest.raises(ConfigError, match=r"n_frms: 33 given, but model\.max_frame_pos is 32"):
        config(webvid(33))
    with pytest.raises(ConfigError, match=r"clips_per_video: 9 .*model\.max_audio_clips is 8"):
        config(webvid(32, 9))
    with pytest.raises(ConfigError, match=r"n_frms: 9 given, but model\.max_audio_clips is 8"):
        config(webvid(9), **AUDIO)
    config(webvid(8, 8), **AUDIO)
    config(webvid(33, 9), interpolate_positions=True)


def test_pictures_have_the_size_of_the_model() -> None:
    with pytest.raises(ConfigError, match=r"train\.image_size: 224 given, but .* is 56"):
        config({"cc_sbu": CcSbuSettings()}, image_size=56)


def test_ratios_are_given_to_all_or_to_none() -> None:
    config({"webvid": WebvidSettings(sample_ratio=1), "cc_sbu": CcSbuSettings(sample_ratio=0)})
    with pytest.raises(ConfigError, match=r"datasets\.cc_sbu\.sample_ratio: not given"):
        config({"webvid": WebvidSettings(sample_ratio=1), "cc_sbu": CcSbuSettings()})
    with pytest.raises(ConfigError, match="0 in every data set"):
        config({"webvid": WebvidSettings(sample_ratio=0)})


def test_a_data_set_asks_for_the_paths_it_needs() -> None:
    assert BuildInfo(storage="a").require_path("storage") == Path("a")
    with pytest.raises(ConfigError, match=r"build_info\.anno_dir is not set"):
        BuildInfo().require("anno_dir")


def test_data_type_is_a_known_kind_of_media() -> None:
    with pytest.raises(ConfigError, match=r"data_type: 'clips' given"):
        WebvidSettings(data_type="clips")
