"""The words in which `load_config` refuses a YAML or an override."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from video_llama.config.load import load_config
from video_llama.config.schema import Config
from video_llama.types import ConfigError

MODEL = "model:\n  llama_model: llama\n"
CLIPS = "datasets:\n  webvid:\n    vis_processor:\n      train:\n        name: alpro_video_train\n"


def load(tmp_path: Path, text: str, overrides: Sequence[str] = ()) -> Config:
    path = tmp_path / "x.yaml"
    path.write_text(text)
    return load_config(path, overrides)


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        (MODEL + "modle:\n  x: 1\n", ["x.yaml:3: modle:", "'model'", "datasets, model, run"]),
        (MODEL + "  max_txt_length: 1\n", ["x.yaml:3: model.max_txt_length:", "'max_txt_len'"]),
        (MODEL + "  vit_config: {dept: 3}\n", [":3: model.vit_config.dept:", "'depth'"]),
        (
            MODEL + CLIPS + "        n_frames: 3\n",
            [":8: datasets.webvid.vis_processor.train.n_frames:", "'n_frms'"],
        ),
        (MODEL + "  max_txt_len: abc\n", [":3: model.max_txt_len:", "'abc'", "whole number"]),
        (MODEL + "  max_txt_len: 3.5\n", ["3.5 given", "a whole number expected"]),
        (MODEL + "  max_txt_len:\n", ["null given", "a whole number expected"]),
        (MODEL + "  drop_path_rate: x\n", ["'x' given", "a number expected"]),
        (MODEL + "  vit_config: 3\n", ["model.vit_config: 3 given", "patch_size, embed_dim"]),
        (MODEL + "  ckpt: [a]\n", ["model.ckpt: ['a'] given", "text or null expected"]),
        (MODEL + "  ckpt: {a: 1}\n", ["model.ckpt: {'a': 1} given", "text or null"]),
        (MODEL + "  ckpt: false\n", ["model.ckpt: false given", "text or null expected"]),
        (MODEL + "run:\n  amp: maybe\n", [":4: run.amp: 'maybe'", "true or false"]),
        (MODEL + "run:\n  train_splits: train\n", ["run.train_splits: 'train'", "[a, b]"]),
        (MODEL + "run:\n  train_splits: [a, [b]]\n", ["run.train_splits", "[a, b]"]),
        (MODEL + CLIPS + "        std: [1, 2]\n", [":8: datasets", "std: [1, 2]", "3 numbers"]),
        (MODEL + "  precision: fp61\n", ["'fp61'", "'fp16'", "bf16, fp16, fp32"]),
        (MODEL + "  model_type: vicuna\n", ["pretrain_llama_v2, pretrain_vicuna"]),
        (MODEL + "  arch: blip\n", [":3: model.arch:", "'blip'", "video_llama"]),
        (MODEL + "  arch: [a]\n", ["model.arch: ['a']", "video_llama"]),
        (MODEL + "datasets:\n  webvidd:\n", [":4: datasets.webvidd", "'webvid'", "cc_sbu, "]),
        (MODEL + "datasets:\n  - webvid\n", [":3: datasets: ['webvid'] given", "mapping"]),
        (MODEL + "datasets:\n  webvid: 3\n", [":4: datasets.webvid: 3 given", "mapping"]),
        (
            MODEL + CLIPS.replace("_train", "_trian"),
            [":7: datasets.webvid.vis_processor.train.name: 'alpro_video_trian'", "_train'"],
        ),
        (
            MODEL + CLIPS.replace("alpro_video_train", "blip_caption"),
            ["'blip_caption' given", "alpro_video_train, blip2_image_eval, blip2_image_train"],
        ),
        (
            MODEL + "datasets:\n  webvid:\n    audio_processor: {train: {clip_duration: 2}}\n",
            ["audio_processor.train.name: required", "imagebind_audio"],
        ),
        (
            MODEL + "datasets:\n  webvid:\n    vis_processor: alpro\n",
            [":5: datasets.webvid.vis_processor: 'alpro' given", "train, eval"],
        ),
        ("model:\n  arch: video_llama\n", ["model.llama_model: required"]),
        ("", ["x.yaml: model.llama_model: required"]),
        (MODEL + "  ckpt: ${model.nope}\n", [":3: model.ckpt:", "'model.nope' not found"]),
        (MODEL + "  ckpt: ${model.ckpt}\n", [":3: model.ckpt:", "Recursive"]),
        (MODEL + "  max_txt_len: ${model.arch}\n", [":3: model.max_txt_len", "whole number"]),
        (
            MODEL + "  vit_config: ${model.qformer_config}\n",
            [":3: model.vit_config.hidden_size: not a setting", "patch_size"],
        ),
        (MODEL + "  vit_config: {depth: 0}\n", [":3: model.vit_config.depth: 0", "at least 1"]),
        (MODEL + "run:\n  init_lr: .nan\n", [":4: run.init_lr: nan given"]),
    ],
)
def test_a_mistake_names_file_line_key_value_and_what_is_valid(
    tmp_path: Path, text: str, facts: list[str]
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text)
    assert str(caught.value).startswith(str(tmp_path / "x.yaml"))
    for fact in facts:
        assert fact in str(caught.value)


@pytest.mark.parametrize(
    ("override", "facts"),
    [
        ("model.max_txt_len", ["section.key=value expected"]),
        ("max_txt_len=3", ["section.key=value expected"]),
        ("model..ckpt=3", ["section.key=value expected"]),
        ("=3", ["section.key=value expected"]),
        ("modl.x=3", ["modl: not a section", "'model'"]),
        ("model.max_txt_length=3", ["model.max_txt_length: not a setting", "'max_txt_len'"]),
        ("model.max_txt_len=abc", ["model.max_txt_len: 'abc' given", "a whole number"]),
        ("model.max_txt_len=", ["null given", "a whole number"]),
        ("run.train_splits=train", ["'train' given", "a list such as [a, b]"]),
        ("run.train_splits=[train", ["'[train' given", "a list such as [a, b]"]),
        ("run.train_splits.0=train", ["run.train_splits", "a list such as [a, b]"]),
        ("model.llama_model.x=3", ["llama_model is 'llama', not a section"]),
        ("model.vit_config=3", ["model.vit_config: 3 given"]),
        ("model.ckpt=${nope}", ["'nope' not found"]),
        ("model.ckpt=${", ["no viable alternative"]),
        ("model.ckpt=${package:}", ["model.ckpt: ${package:...} got 0 values", "one path"]),
        ("model.ckpt=" + "[" * 2000, ["nested too deeply"]),
        ("model" + ".x" * 2000 + "=1", ["section.key=value expected"]),
        ("run.init_lr=" + "9" * 4000, ["a number expected"]),
        ("run.seed=9223372036854775807", ["at most 4611686018427387904 expected"]),
        ("datasets.webvid=null", ["leaves out a data set that is not there"]),
        ("datasets.webvidd.sample_ratio=3", ["unknown data set 'webvidd'"]),
    ],
)
def test_a_mistaken_override_is_quoted(tmp_path: Path, override: str, facts: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, MODEL, [override])
    assert str(caught.value).startswith(f"override {override!r}: ")
    for fact in facts:
        assert fact in str(caught.value)


def test_an_override_of_many_letters_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="60008 letters given, at most 4096") as caught:
        load(tmp_path, MODEL, ["model.x=" + "[" * 60_000])
    assert len(str(caught.value)) < 200


TWO_SETS = (
    MODEL
    + """datasets:
  webvid:
    build_info: {anno_dir: a.csv, videos_dir: clips}
  cc_sbu_align:
    build_info:
      storage: pictures
"""
)


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ([], ["webvid", "cc_sbu_align"]),
        (["datasets.webvid=null"], ["cc_sbu_align"]),
        (["datasets.webvid="], ["cc_sbu_align"]),
        (["datasets.cc_sbu_align.build_info.storage=null"], ["webvid"]),
        (["datasets.cc_sbu_align.build_info.storage="], ["webvid"]),
        (["datasets.cc_sbu_align.build_info=null"], ["webvid"]),
        (["datasets.webvid.build_info.anno_dir=~"], ["cc_sbu_align"]),
        # Other paths are left, or given later: the data set stays.
        (["datasets.webvid.build_info.storage=null"], ["webvid", "cc_sbu_align"]),
        (["datasets.webvid.build_info.videos_dir=null"], ["webvid", "cc_sbu_align"]),
        (
            [
                "datasets.webvid.build_info.anno_dir=null",
                "datasets.webvid.build_info.storage={000..012}.tar",
            ],
            ["webvid", "cc_sbu_align"],
        ),
    ],
)
def test_null_leaves_a_data_set_out(tmp_path: Path, overrides: list[str], names: list[str]) -> None:
    assert list(load(tmp_path, TWO_SETS, overrides).datasets) == names


def test_a_data_set_without_paths_in_the_file_stays(tmp_path: Path) -> None:
    text = MODEL + "datasets:\n  webvid:\n  cc_sbu:\n"
    assert list(load(tmp_path, text).datasets) == ["webvid", "cc_sbu"], "blank: the defaults"


def test_null_for_an_unknown_key_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"build_info\.storag: not a setting; .*'storage'"):
        load(tmp_path, TWO_SETS, ["datasets.cc_sbu_align.build_info.storag=null"])
    with pytest.raises(ConfigError, match="unknown data set 'cc_sbu_aling'"):
        load(tmp_path, TWO_SETS, ["datasets.cc_sbu_aling.build_info.storage=null"])
