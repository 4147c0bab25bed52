"""`load_config`: what it accepts, completes and refuses, and in which words."""

from __future__ import annotations

import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.reference import ROOT
from video_llama.config.load import MAX_BYTES, load_config
from video_llama.config.schema import Config, ConfigWarning
from video_llama.processors.settings import ImageTrainSettings, VideoEvalSettings
from video_llama.types import ConfigError

MODEL = "model:\n  llama_model: llama\n"
CLIPS = "datasets:\n  webvid:\n    vis_processor:\n      train:\n        name: alpro_video_train\n"
Load = Callable[..., Config]


@pytest.fixture
def load(tmp_path: Path) -> Load:
    def load_text(text: str, overrides: Sequence[str] = ()) -> Config:
        path = tmp_path / "x.yaml"
        path.write_text(text)
        return load_config(path, overrides)

    return load_text


def test_a_model_section_is_enough(load: Load) -> None:
    config = load(MODEL)
    assert config.model.llama_model == "llama"
    assert config.datasets == {}
    assert (config.run.device, config.run.seed) == ("auto", 42)


def test_blank_sections_and_nodes_have_their_defaults(load: Load) -> None:
    config = load(MODEL + "  vit_config:\ndatasets:\n  cc_sbu:\n    build_info:\nrun:\n")
    assert config.model.vit_config.depth == 39
    assert isinstance(config.datasets["cc_sbu"].vis_processor.train, ImageTrainSettings)


def test_a_processor_is_chosen_by_its_name(load: Load) -> None:
    text = MODEL + CLIPS.replace("alpro_video_train", "alpro_video_eval\n        n_frms: 4")
    train = load(text).datasets["webvid"].vis_processor.train
    assert train == VideoEvalSettings(n_frms=4)


def test_a_processor_may_be_left_out_with_null(load: Load) -> None:
    text = MODEL + "datasets:\n  webvid:\n    text_processor:\n      train: null\n"
    assert load(text).datasets["webvid"].text_processor.train is None


def test_numbers_like_1e_minus_4_are_numbers(load: Load) -> None:
    assert load(MODEL + "run:\n  init_lr: 1e-4\n").run.init_lr == 1e-4


def test_values_may_refer_to_others_and_to_the_package(load: Load) -> None:
    config = load(
        MODEL + "  ckpt: ${model.llama_model}/b.pth\n  ckpt_2: ${package:presets/tiny}\n"
        "run:\n  seed: ${model.max_txt_len}\n"
    )
    assert config.model.ckpt == "llama/b.pth"
    assert config.model.ckpt_2 == str(ROOT / "video_llama" / "presets" / "tiny")
    assert config.run.seed == 32


def test_overrides_win_in_order(load: Load) -> None:
    overrides = [
        "model.ckpt=a.pth",
        "model.ckpt=b.pth",
        "model.end_sym=###",
        "run.train_splits=[train, more]",
        "run.init_lr=2e-4",
        "run.resume_ckpt_path=null",
        "datasets.webvid.vis_processor.train.n_frms=4",
        "datasets.webvid.sample_ratio=2",
        "model.prompt_template=[INST] a=b {} [/INST] ",
    ]
    config = load(MODEL + CLIPS, overrides)
    assert config.model.ckpt == "b.pth"
    assert config.model.end_sym == "###", "a comment to YAML, text to us"
    assert config.run.train_splits == ["train", "more"]
    assert config.run.init_lr == 2e-4
    assert config.run.resume_ckpt_path is None
    assert config.datasets["webvid"].vis_processor.train.n_frms == 4  # type: ignore[union-attr]
    assert config.datasets["webvid"].sample_ratio == 2
    assert config.model.prompt_template == "[INST] a=b {} [/INST] "


IGNORED = {
    "model.device_8bit": "0",
    "model.prompt": "hello",
    "model.fusion_header_type": "meanP",
    "run.dist_url": '"env://"',
    "run.world_size": "1",
    "run.distributed": "true",
}


@pytest.mark.parametrize("key", IGNORED)
def test_a_key_without_effect_warns_once_and_names_itself(load: Load, key: str) -> None:
    section, name = key.split(".")
    text = MODEL + ("" if section == "model" else "run:\n") + f"  {name}: {IGNORED[key]}\n"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        config = load(text)
    assert len(caught) == 1
    assert caught[0].category is ConfigWarning
    assert key in str(caught[0].message)
    assert "no effect" in str(caught[0].message)
    assert caught[0].filename == __file__, "the warning points at the caller"
    if name != "fusion_header_type":
        assert config.to_yaml() == load(MODEL).to_yaml()


def test_a_yaml_of_the_original_loads(load: Load) -> None:
    with pytest.warns(ConfigWarning) as caught:
        config = load(ORIGINAL_STYLE)
    assert len(caught) == 4
    assert config.model.end_sym == "###"
    assert config.model.quantization == "int8"
    assert config.model.trained_branch == "video"
    assert config.datasets["webvid_instruct"].tokenizer_name == "ckpt/vicuna-7b/"
    assert config.run.resume_ckpt_path is None


ORIGINAL_STYLE = """
model:
  arch: video_llama
  model_type: pretrain_vicuna
  freeze_vit: True
  freeze_qformer: True
  llama_model: "ckpt/vicuna-7b/"
  imagebind_ckpt_path: "ckpt/imagebind_path/"
  ckpt: 'path/vl.pth'
  equip_audio_branch: False
  frozen_llama_proj: False
  frozen_video_Qformer: False
  frozen_audio_Qformer: True
  fusion_head_layers: 2
  max_frame_pos: 32
  fusion_header_type: "seqTransf"
  max_txt_len: 320
  end_sym: "###"
  low_resource: True
  device_8bit: 0
  prompt_path: "prompts/alignment_image.txt"
  prompt_template: '###Human: {} ###Assistant: '
datasets:
  webvid_instruct:
    data_type: video
    build_info:
      anno_dir: a/videochat_instruct_11k.json
      videos_dir: a/videos/
    vis_processor:
      train:
        name: "alpro_video_train"
        n_frms: 8
        image_size: 224
    text_processor:
      train:
        name: "blip_caption"
    num_video_query_token: 32
    tokenizer_name: "ckpt/vicuna-7b/"
    model_type: "vicuna"
run:
  task: video_text_pretrain
  lr_sched: "linear_warmup_cosine_lr"
  init_lr: 3e-5
  min_lr: 1e-5
  warmup_lr: 1e-6
  weight_decay: 0.05
  max_epoch: 3
  iters_per_epoch: 1000
  batch_size_train: 4
  batch_size_eval: 4
  num_workers: 4
  warmup_steps: 1000
  seed: 42
  output_dir: "output/videollama_stage2_finetune"
  amp: True
  resume_ckpt_path: null
  evaluate: False
  train_splits: ["train"]
  device: "cuda"
  world_size: 1
  dist_url: "env://"
  distributed: True
"""


def refusal(path: Path, content: str | bytes) -> str:
    """Return the message with which `content` is refused."""
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigError) as caught:
        load_config(path)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "x.yaml"


def test_a_byte_order_mark_is_no_text(path: Path) -> None:
    path.write_bytes(b"\xef\xbb\xbf" + MODEL.encode() + b"  ckpt: \xc3\xa4.pth\n")
    assert load_config(path).model.ckpt == "ä.pth"


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nope\.yaml: no such file"):
        load_config(tmp_path / "nope.yaml")
    with pytest.raises(ConfigError, match="a folder given"):
        load_config(tmp_path)


@pytest.mark.parametrize("line", ['  ckpt: "a.pth" or "b.pth"', "  ckpt: 'a.pth' or b.pth  # c"])
def test_the_originals_choice_of_two_values_says_what_to_do(path: Path, line: str) -> None:
    message = refusal(path, f"model:\n{line}\n  arch: video_llama\n")
    assert "x.yaml:2: not YAML" in message
    assert "keep one of the two values" in message


@pytest.mark.parametrize("text", ["model:\n\tckpt: a\n", "model:\n  ckpt: a\n\tarch: b\n"])
def test_tabs_are_named(path: Path, text: str) -> None:
    message = refusal(path, text)
    assert "not with tabs" in message
    assert f"x.yaml:{text[: text.index(chr(9))].count(chr(10)) + 1}:" in message


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("model:\n  a: 1\n   b: 2\n", 3),
        ("model:\n  a: b: c\n", 2),
        ("{{{ %%", 1),
        ("a: 1\n---\nb: 2\n", 2),
        ("model: !!python/object/apply:os.getcwd []\n", 1),
    ],
)
def test_what_is_not_yaml_names_the_line(path: Path, text: str, line: int) -> None:
    assert f"x.yaml:{line}: not YAML" in refusal(path, text)


def test_a_key_given_twice_says_so(path: Path) -> None:
    message = refusal(path, "model:\n  ckpt: a\n  arch: x\n  ckpt: b\n")
    assert "x.yaml:4: not YAML: found duplicate key ckpt" in message
    assert "keep one of the two" in message


@pytest.mark.parametrize(("text", "kind"), [("- a\n", "sequence"), ("abc\n", "scalar")])
def test_the_top_level_is_a_mapping(path: Path, text: str, kind: str) -> None:
    assert f"the top level is a {kind}" in refusal(path, text)


def test_a_key_is_a_name(path: Path) -> None:
    assert "x.yaml:2: not YAML: found unhashable key" in refusal(path, "model:\n  [a]: 3\n")


@pytest.mark.parametrize("content", [b"model: \xff\xfe\n", "model:\n".encode("utf-16")])
def test_another_encoding_says_to_save_as_utf8(path: Path, content: bytes) -> None:
    assert "save the file as UTF-8" in refusal(path, content)


@pytest.mark.parametrize("content", [b"a: b\0c\n", bytes(range(1, 128))])
def test_control_characters_are_not_yaml(path: Path, content: bytes) -> None:
    assert "control characters" in refusal(path, content)


def test_interpolations_without_end_and_numbers_without_end(path: Path) -> None:
    refusal(path, "model:\n  ckpt: ${model\n")
    refusal(path, f"model:\n  max_txt_len: {'9' * 5000}\n")


def test_what_no_parser_can_hold_is_one_error(path: Path) -> None:
    for value in ("9" * 5000, '!!int ""', "!!set {a}", "[" * 100_000, "2020-13-99"):
        assert len(refusal(path, f"model:\n  max_txt_len: {value}\n")) < 500
    assert "aliases" in refusal(path, "model: &a\n  x: *a\n")
    assert "is this a configuration?" in refusal(path, "#" * (MAX_BYTES + 1))
    with pytest.raises(ConfigError, match="a device or pipe given"):
        load_config("/dev/zero")


def test_what_is_written_back_loads_to_an_equal_config(load: Load) -> None:
    text = f"""{MODEL}
  ckpt: 'odd \\${{model.arch}} # name'
  end_sym: "\\n"
  low_resource: true
{CLIPS}
run:
  init_lr: 1e-5
"""
    config = load(text)
    again = load(config.to_yaml())
    assert config.model.ckpt == "odd ${model.arch} # name", "no interpolation"
    assert config.model.end_sym == "\n"
    assert again == config
    assert again.to_yaml() == config.to_yaml()


def test_shipped_prompts_are_found_from_elsewhere(
    load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = MODEL + "  prompt_path: prompts/alignment_image.txt\n"
    monkeypatch.chdir(ROOT)
    assert load(text).model.prompt_path == "prompts/alignment_image.txt"
    monkeypatch.chdir(tmp_path)
    assert load(text).model.prompt_path == str(ROOT / "prompts" / "alignment_image.txt")
    beside = tmp_path.parent / "prompts" / "alignment_image.txt"
    beside.parent.mkdir()
    beside.write_text("<ImageHere>")
    assert load(text).model.prompt_path == str(beside), "the folder of the YAML goes first"
    missing = load(MODEL + "  prompt_path: prompts/none.txt\n")
    assert missing.model.prompt_path == "prompts/none.txt", "doctor and build look for it"


def test_loading_takes_no_torch_and_no_time() -> None:
    code = (
        "import sys, video_llama.config.load as c, video_llama.common.io as r; "
        "c.load_config(r.default_config_path()); "
        "print([m for m in ('torch', 'transformers', 'numpy') if m in sys.modules])"
    )
    run = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "[]"
    path = ROOT / "train_configs" / "visionbranch_stage2_finetune.yaml"
    start = time.perf_counter()
    load_config(path)
    assert time.perf_counter() - start < 1.0, "0.06 s on an idle machine"
