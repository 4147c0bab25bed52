"""The YAMLs that ship say what the original's say, value by value."""

from __future__ import annotations

import json
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from sentencepiece import SentencePieceProcessor

from tests.reference import ROOT
from video_llama.common.io import default_config_path, package_file, resource
from video_llama.config.load import load_config
from video_llama.config.schema import Config

LLAMA = {
    "arch": "video_llama",
    "model_type": "pretrain_llama_v2",
    "template": "llama_v2",
    "llama_model": "ckpt/llama-2-7b-chat-hf",
    "fusion_head_layers": 2,
    "max_frame_pos": 32,
    "fusion_header_type": "seqTransf",
    "image_size": 224,
    "drop_path_rate": 0.0,
    "use_grad_checkpoint": False,
    "vit_precision": "fp16",
    "low_resource": False,
    "quantization": "none",
    "random_init": False,
}
TRAIN = {
    **LLAMA,
    "freeze_vit": True,
    "freeze_qformer": True,
    "num_query_token": 32,
    "num_video_query_token": 32,
}
VIDEO_BRANCH = {
    "equip_audio_branch": False,
    "frozen_llama_proj": False,
    "frozen_video_Qformer": False,
    "frozen_audio_Qformer": True,
    "imagebind_ckpt_path": None,
    "ckpt_2": None,
}
AUDIO_BRANCH = {
    "equip_audio_branch": True,
    "frozen_llama_proj": True,
    "frozen_video_Qformer": True,
    "frozen_audio_Qformer": False,
    "imagebind_ckpt_path": "ckpt/imagebind_path/",
    "num_audio_query_token": 8,
}
STAGE_1 = {
    "llama_proj_model": "ckpt/pretrained_minigpt4.pth",
    "ckpt": None,
    "ckpt_2": None,
    "max_txt_len": 32,
    "end_sym": "\n",
    "prompt_path": None,
}
STAGE_2 = {
    "llama_proj_model": None,
    "end_sym": "</s>",
    "prompt_path": "prompts/alignment_image.txt",
    "prompt_template": "[INST] <<SYS>>\n \n<</SYS>>\n\n{} [/INST] ",
}
RUN = {
    "task": "video_text_pretrain",
    "lr_sched": "linear_warmup_cosine_lr",
    "warmup_lr": 1e-6,
    "weight_decay": 0.05,
    "seed": 42,
    "amp": True,
    "resume_ckpt_path": None,
    "evaluate": False,
    "train_splits": ["train"],
    "device": "auto",
}
RUN_COLUMNS = (
    "init_lr",
    "min_lr",
    "max_epoch",
    "iters_per_epoch",
    "batch_size_train",
    "batch_size_eval",
    "num_workers",
    "warmup_steps",
    "output_dir",
)


def run_values(*column: object) -> dict[str, Any]:
    return {**RUN, **dict(zip(RUN_COLUMNS, column, strict=True))}


CLIPS = {"name": "alpro_video_train", "n_frms": 8, "image_size": 224}
PICTURES = {"name": "blip2_image_train", "image_size": 224}
WEBVID_AND_CC3M = {
    "webvid": (CLIPS, {"sample_ratio": 100}),
    "cc_sbu_align": (PICTURES, {"sample_ratio": 24}),
}


def instructions(num_queries: int) -> dict[str, Any]:
    queries = {"sample_ratio": None, "num_video_query_token": num_queries}
    return {
        "cc_sbu_align": (PICTURES, {"sample_ratio": None}),
        "llava_instruct": (PICTURES, queries),
        "webvid_instruct": (CLIPS, queries),
    }


EVAL = {
    **LLAMA,
    "max_txt_len": 512,
    "end_sym": "</s>",
    "frozen_llama_proj": False,
    "frozen_video_Qformer": True,
    "frozen_audio_Qformer": True,
    "ckpt": "ckpt/VL_LLaMA_2_7B_Finetuned.pth",
}
EVAL_DATA = {"webvid": ({**CLIPS, "name": "alpro_video_eval", "sampling": "auto"}, {})}

TABLE: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "train_configs/visionbranch_stage1_pretrain.yaml": (
        {**TRAIN, **VIDEO_BRANCH, **STAGE_1},
        WEBVID_AND_CC3M,
        run_values(1e-4, 8e-5, 5, 2500, 32, 32, 8, 2500, "output/videollama_stage1_pretrain"),
    ),
    "train_configs/visionbranch_stage2_finetune.yaml": (
        {**TRAIN, **VIDEO_BRANCH, **STAGE_2, "max_txt_len": 320},
        instructions(32),
        run_values(3e-5, 1e-5, 3, 1000, 4, 4, 4, 1000, "output/videollama_stage2_finetune"),
    ),
    "train_configs/audiobranch_stage1_pretrain.yaml": (
        {**TRAIN, **AUDIO_BRANCH, **STAGE_1},
        WEBVID_AND_CC3M,
        run_values(1e-4, 8e-5, 5, 5000, 32, 32, 8, 5000, "output/audiobranch_stage1_pretrain"),
    ),
    "train_configs/audiobranch_stage2_finetune.yaml": (
        {**TRAIN, **AUDIO_BRANCH, **STAGE_2, "max_txt_len": 512},
        instructions(8),
        run_values(3e-5, 1e-5, 3, 1000, 4, 2, 4, 400, "output/audiobranch_stage2_finetune"),
    ),
    "eval_configs/video_llama_eval_withaudio.yaml": (
        {
            **EVAL,
            "equip_audio_branch": True,
            "imagebind_ckpt_path": "ckpt/imagebind_path/",
            "ckpt_2": "ckpt/AL_LLaMA_2_7B_Finetuned.pth",
        },
        EVAL_DATA,
        {"task": "video_text_pretrain"},
    ),
    "eval_configs/video_llama_eval_only_vl.yaml": (
        {**EVAL, "equip_audio_branch": False, "imagebind_ckpt_path": None, "ckpt_2": None},
        EVAL_DATA,
        {"task": "video_text_pretrain"},
    ),
}
ALL = [*TABLE, "eval_configs/tiny.yaml"]


def load(name: str, *overrides: str) -> Config:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return load_config(ROOT / name, overrides)


def selected(settings: object, like: dict[str, Any]) -> dict[str, Any]:
    return {key: getattr(settings, key) for key in like}


@pytest.fixture(autouse=True)
def _run_from_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize("name", TABLE)
def test_values_are_those_of_the_table(name: str) -> None:
    model, datasets, run = TABLE[name]
    config = load(name)
    assert selected(config.model, model) == model
    assert selected(config.run, run) == run
    assert list(config.datasets) == list(datasets)
    for dataset, (vis, entry) in datasets.items():
        given = config.datasets[dataset]
        assert selected(given.vis_processor.train, vis) == vis
        assert selected(given, entry) == entry
        assert given.text_processor.train is not None


@pytest.mark.parametrize("name", [name for name in TABLE if "stage1" in name])
def test_webvid_takes_frames_of_both_halves(name: str) -> None:
    assert load(name).datasets["webvid"].vis_processor.train.sampling == "headtail"  # type: ignore[union-attr]


def test_where_the_data_lies() -> None:
    stage_1 = load("train_configs/visionbranch_stage1_pretrain.yaml").datasets
    assert stage_1["webvid"].build_info.anno_dir
    assert stage_1["webvid"].build_info.videos_dir
    assert stage_1["cc_sbu_align"].build_info.storage == "data/LLaVA-CC3M/"
    stage_2 = load("train_configs/audiobranch_stage2_finetune.yaml").datasets
    assert stage_2["cc_sbu_align"].build_info.storage == "data/cc_sbu_align/"
    llava, clips = stage_2["llava_instruct"].build_info, stage_2["webvid_instruct"].build_info
    assert (llava.anno_dir, llava.videos_dir) == (
        "data/llava_instruct_150k.json",
        "data/train2014/",
    )
    assert clips.anno_dir == "data/videochat_instruct_11k.json"
    assert clips.videos_dir == "data/webvid_align/videos/"


@pytest.mark.parametrize("name", ALL)
def test_one_key_turns_it_to_vicuna(name: str) -> None:
    model = load(name, "model.model_type=pretrain_vicuna").model
    assert (model.template, model.prompt_template) == ("vicuna", "###Human: {} ###Assistant: ")
    assert model.end_sym == ("\n" if "stage1" in name else "###")


@pytest.mark.parametrize("name", ALL)
def test_the_head_gives_the_command_and_the_way_to_vicuna(name: str) -> None:
    head = (ROOT / name).read_text().partition("\nmodel:")[0]
    assert all(line.startswith("#") or not line for line in head.splitlines())
    program = "train.py" if name.startswith("train") else "python demo_audiovideo.py"
    assert program in head
    assert name in head
    # The tiny preset's branches were trained with the format of LLaMA-2.
    assert ("model.model_type=pretrain_vicuna" in head) == (name != "eval_configs/tiny.yaml")


@pytest.mark.parametrize("name", ALL)
def test_it_loads_from_anywhere_and_round_trips(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(name)
    (tmp_path / "again.yaml").write_text(config.to_yaml())
    assert load_config(tmp_path / "again.yaml") == config
    if config.model.prompt_path:
        assert Path(config.model.prompt_path).is_file()


def test_tiny_is_the_default_and_is_small() -> None:
    assert default_config_path() == resource("eval_configs/tiny.yaml")
    model = load("eval_configs/tiny.yaml").model
    assert not model.random_init
    assert model.llama_model == str(package_file("presets/tiny/llama"))
    assert (model.image_size, model.vit_config.patch_size) == (84, 14)
    assert (model.vit_config.embed_dim, model.vit_config.depth) == (128, 4)
    assert asdict(model.qformer_config) == {
        "hidden_size": 64,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "intermediate_size": 256,
    }
    assert asdict(model.imagebind_config) == {
        "vision_embed_dim": 96,
        "vision_num_blocks": 3,
        "vision_num_heads": 4,
        "audio_embed_dim": 96,
        "audio_num_blocks": 3,
        "audio_num_heads": 4,
        "out_embed_dim": 64,
        "image_size": 84,
    }
    queries = (model.num_query_token, model.num_video_query_token, model.num_audio_query_token)
    assert queries == (8, 8, 8)
    assert {model.vit_precision, model.imagebind_precision, model.precision} == {"fp32"}


def test_tiny_llama_is_described() -> None:
    folder = package_file("presets/tiny/llama")
    described = json.loads((folder / "config.json").read_text())
    sizes = [described[key] for key in ("hidden_size", "num_hidden_layers", "num_attention_heads")]
    assert sizes == [128, 4, 4]
    assert described["max_position_embeddings"] == 2048
    tokenizer = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    assert described["vocab_size"] >= tokenizer.vocab_size(), "every id has an embedding"


def test_a_resource_that_is_missing_names_both_places() -> None:
    with pytest.raises(FileNotFoundError, match=r"_data.*nope\.yaml.*nope\.yaml"):
        resource("nope.yaml")


def test_caption_prompts_have_one_place_for_the_picture() -> None:
    lines = resource("prompts/alignment_image.txt").read_text().splitlines()
    assert len(lines) == 4
    assert all(line.startswith("<Image><ImageHere></Image> ") for line in lines)
