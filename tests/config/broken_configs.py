"""Configurations that are broken in one way each, and what has to be said about them."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from tests.full_model import branch_file, write
from tests.random_tiny import copy_of_llama, random_tiny
from tests.tiny_chat import tiny_model
from video_llama.common.io import package_file
from video_llama.models.weights.checks import RELEASED_SIZES
from video_llama.models.weights.names import original_name
from video_llama.models.weights.save import describe_branch, save_branch

Changes = dict[str, Any]
DATA = "datasets.webvid.build_info"
LFS_POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 499723\n"


def write_yaml(path: Path, changes: Changes) -> Path:
    """The tiny preset with values set by dotted keys; None of a section removes it."""
    content = yaml.safe_load(random_tiny().read_text("utf-8"))
    for key, value in changes.items():
        *sections, last = key.split(".")
        node = content
        for section in sections:
            node = node.setdefault(section, {})
        node[last] = value
    path.write_text(yaml.safe_dump(content), "utf-8")
    return path


def llm(folder: Path, tokenizer: str | None = "", **config: Any) -> str:
    """The preset's LLM folder, copied, with values of its config.json changed.

    A text or None instead of its tokenizer: that text, or none.
    """
    copy_of_llama(folder)
    values = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(values | config), "utf-8")
    if tokenizer:
        (folder / "tokenizer.model").write_text(tokenizer, "utf-8")
    elif tokenizer is None:
        (folder / "tokenizer.model").unlink()
    return str(folder)


def content(path: Path, text: str) -> str:
    """A file with this text; its folder is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return str(path)


def branch(folder: Path, *, stage: int = 2, **manifest: Any) -> str:
    """A file of the tiny model's video branch."""
    model = tiny_model("model.frozen_video_Qformer=false")
    about = describe_branch(
        model.settings, model.language_model.config, stage=stage, frames=8, clips=8, step=1
    )
    about = type(about)(**{**vars(about), **manifest})
    save_branch(model.trainable_parameters(), folder / "branch.safetensors", about)
    return str(folder / "branch.safetensors")


def truncated(path: str) -> str:
    data = Path(path).read_bytes()
    Path(path).write_bytes(data[: len(data) // 2])
    return path


def deaf_model(folder: Path) -> str:
    """The weights of the whole tiny model but for ImageBind."""
    named = {original_name(name): p for name, p in tiny_model().named_parameters()}
    kept = {name: p.detach() for name, p in named.items() if "audio_encoder" not in name}
    return str(write(folder / "whole.pth", {"model": kept}))


def full_size(folder: Path) -> Changes:
    """A 7B language model of shapes with a branch for a 13B one."""
    file = write(folder / "VL_LLaMA_2_13B_Finetuned.pth", branch_file("video", 5120))
    model = {
        "llama_model": llm(folder / "llm", vocab_size=32000, **RELEASED_SIZES["7b"]),
        "ckpt": str(file),
        "random_init": True,
    }
    return {"model": model, "datasets": {}}


def training(folder: Path, **changes: Any) -> Changes:
    """A run that trains the video branch on one clip."""
    header = "videoid,page_dir,name\n1,a,a dog barks\n"
    return {
        "model.frozen_video_Qformer": False,
        "run.output_dir": str(folder / "output"),
        f"{DATA}.anno_dir": content(folder / "annotations/0.csv", header).removesuffix("/0.csv"),
        f"{DATA}.videos_dir": str(folder),
        **changes,
    }


def shards(folder: Path) -> str:
    """An LLM folder whose index names a file that is not there."""
    weight_map = {"lm_head.weight": "model-00002-of-00002.safetensors"}
    llm(folder)
    content(folder / "model.safetensors.index.json", json.dumps({"weight_map": weight_map}))
    return str(folder)


def spoiled_branch(folder: Path, value: float, *, only: str = "") -> str:
    """A file of the tiny model's video branch whose matrices hold one value."""
    path = Path(branch(folder))
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    for name, tensor in state.items():
        if name.startswith(only) and tensor.ndim > 1:
            state[name] = torch.full_like(tensor, value)
    save_file(state, folder / "spoiled.safetensors", metadata)
    return str(folder / "spoiled.safetensors")


def spoiled_llm(folder: Path, value: float) -> str:
    """The preset's LLM folder with its weights, copied; its embeddings hold one value."""
    shutil.copytree(package_file("presets/tiny/llama"), folder)
    (path,) = folder.glob("*.safetensors")
    state = load_file(path)
    table = state["model.embed_tokens.weight"]
    state["model.embed_tokens.weight"] = torch.full_like(table, value)
    save_file(state, path, {"format": "pt"})
    return str(folder)


AT_A_GLANCE: dict[str, tuple[Callable[[Path], Changes], str]] = {
    "LLM of GPTQ": (
        lambda p: {
            "model.llama_model": llm(p / "llama", quantization_config={"quant_method": "gptq"})
        },
        r"model.llama_model: .*config.json says that the weights are quantised \(gptq\), plain",
    ),
    "wrong path": (
        lambda p: {"model.ckpt": str(p / "VL.pth")},
        r"model.ckpt: .*VL.pth does not exist; .*README.*correct the path",
    ),
    "relative path": (
        lambda p: {"model.ckpt": "no/VL.pth"},
        r"model.ckpt: no/VL.pth does not exist in /.*; ",
    ),
    "folder for a file": (
        lambda p: {"model.vit_ckpt": content(p / "eva/eva_vit_g.pth", "x")[:-14]},
        r"model.vit_ckpt: .*eva is a folder, give the file; the folder holds eva_vit_g.pth",
    ),
    "file for a folder": (
        lambda p: {"model.llama_model": content(p / "llama.bin", "x")},
        r"model.llama_model: .*llama.bin is a file; give the folder that holds config.json",
    ),
    "no language model": (
        lambda p: {"model.llama_model": str(p / "llama")},
        r"model.llama_model: .*llama does not exist; download LLaMA-2-7b-chat-hf",
    ),
    "no config.json": (
        lambda p: {"model.llama_model": str(Path(content(p / "llm/tokenizer.model", "x")).parent)},
        r"model.llama_model: no .*config.json; give the folder of a LLaMA",
    ),
    "config.json of another model": (
        lambda p: {"model.llama_model": llm(p / "llm", model_type="mistral")},
        r"config.json describes a 'mistral' model; Video-LLaMA needs a LLaMA",
    ),
    "no tokenizer": (
        lambda p: {"model.llama_model": llm(p / "llm", tokenizer=None)},
        r"model.llama_model: .*llm has no tokenizer.model; the download is incomplete",
    ),
    "Git-LFS pointer for a tokenizer": (
        lambda p: {"model.llama_model": llm(p / "llm", tokenizer=LFS_POINTER)},
        r"model.llama_model: .*tokenizer.model is a Git-LFS pointer.*run `git lfs pull`",
    ),
    "no weights": (
        lambda p: {"model.llama_model": llm(p / "llm"), "model.random_init": False},
        r"model.llama_model: .*llm has no \*.safetensors or \*.bin; download the weights",
    ),
    "missing shard": (
        lambda p: {"model.llama_model": shards(p / "llm")},
        r"llm lacks 1 of the 1 files that model.safetensors.index.json names, first model-00002",
    ),
    "template of another family, by folder": (
        lambda p: {"model.llama_model": llm(p / "vicuna-7b")},
        r"model.template: llama_v2 given, but .*vicuna-7b is a vicuna model.*pretrain_vicuna",
    ),
    "template of another family, by config.json": (
        lambda p: {
            "model.llama_model": llm(p / "llm", _name_or_path="meta-llama/Llama-2-7b-chat-hf"),
            "model.model_type": "pretrain_vicuna",
        },
        r"model.template: vicuna given, but .*llm is a llama_v2 model.*pretrain_llama_v2",
    ),
    "empty weight file": (
        lambda p: {"model.ckpt_2": content(p / "AL.pth", "")},
        r"model.ckpt_2: .*AL.pth is empty; download it again",
    ),
    "web page for a weight file": (
        lambda p: {"model.ckpt": content(p / "VL.pth", "<!DOCTYPE html>")},
        r"model.ckpt: .*VL.pth is a web page, not the file itself; the download needs a log-in",
    ),
    "missing imagebind": (
        lambda p: {"model.imagebind_ckpt_path": str(p)},
        r"model.imagebind_ckpt_path: .*imagebind_huge.pth does not exist",
    ),
    "misspelt key": (
        lambda p: {"model.num_video_query_tokens": 8},
        r"model.num_video_query_tokens: .*num_video_query_token'",
    ),
    "wrong type": (lambda p: {"model.image_size": "big"}, r"model.image_size: .*big"),
    "unknown data set": (lambda p: {"datasets.webwid": {}}, r"datasets.webwid.*'webvid'"),
    "both branches trained": (
        lambda p: {"model.frozen_video_Qformer": False, "model.frozen_audio_Qformer": False},
        r"model.frozen_audio_Qformer: .*train the branches one after the other",
    ),
    "too many frames": (
        lambda p: {"datasets.webvid.vis_processor.train.n_frms": 64},
        r"n_frms: 64 given, but model.max_frame_pos is 32; take fewer, or set",
    ),
    "missing annotation": (
        lambda p: training(p, **{f"{DATA}.anno_dir": str(p / "webvid")}),
        r"datasets.webvid.build_info.anno_dir: .*webvid does not exist; give the annotations",
    ),
    "missing media": (
        lambda p: training(p, **{f"{DATA}.videos_dir": str(p / "videos")}),
        r"datasets.webvid.build_info.videos_dir: .*videos does not exist; give the folder",
    ),
    "file for the folder of the media": (
        lambda p: training(p, **{f"{DATA}.videos_dir": content(p / "videos.zip", "x")}),
        r"datasets.webvid.build_info.videos_dir: .*videos.zip is a file; give the folder",
    ),
    "missing tars": (
        lambda p: training(p, **{DATA: {"storage": str(p / "tars/{000..012}.tar")}}),
        r"datasets.webvid.build_info.storage: there is no folder .*tars; correct the path",
    ),
    "no data": (
        lambda p: training(p, **{DATA: {}}),
        r"datasets.webvid.build_info: neither anno_dir nor storage is given; say where",
    ),
    "missing validation data": (
        lambda p: training(
            p, **{f"{DATA}.valid": {"anno_dir": str(p / "v.csv")}, "run.valid_splits": ["valid"]}
        ),
        r"datasets.webvid.build_info.valid.anno_dir: .*v.csv does not exist",
    ),
    "missing prompt file": (
        lambda p: training(p, **{"model.prompt_path": str(p / "no.txt")}),
        r"model.prompt_path: .*no.txt is no file; the shipped one is prompts/alignment_image.txt",
    ),
    "prompt file without a placeholder": (
        lambda p: training(p, **{"model.prompt_path": content(p / "p.txt", "Describe it.\n")}),
        r"model.prompt_path: no line of the file has an <ImageHere> \(.*p.txt\)",
    ),
    "output_dir is a file": (
        lambda p: training(p, **{"run.output_dir": content(p / "file", "x") + "/run"}),
        r"run.output_dir: .*run cannot be made, because .*file is a file; choose another",
    ),
    "nothing to resume": (
        lambda p: training(p, **{"run.resume_ckpt_path": str(p / "run-1")}),
        r"run.resume_ckpt_path: .*run-1 does not exist; give latest, the folder of a run",
    ),
}
"""What is found without torch: what to write, and what must be said."""

WITH_TORCH: dict[str, tuple[Callable[[Path], Changes], str]] = {
    "branch that has diverged": (
        lambda p: {"model.ckpt": spoiled_branch(p, float("nan"), only="video_query")},
        r"model.ckpt: .*: video_query_tokens holds values that are not finite; its training has",
    ),
    "branch of zeros": (
        lambda p: {"model.ckpt": spoiled_branch(p, 0.0)},
        r"model.ckpt: .*: all weights of video_\w+ are zero; .*download or save it again",
    ),
    "LLM with infinite values": (
        lambda p: {"model.llama_model": spoiled_llm(p / "llama", float("inf"))},
        r"model.llama_model: .*: llama_model.model.embed_tokens.weight holds values that are not",
    ),
    "13B file on 7B": (
        full_size,
        r"model.ckpt: .*llama_proj.weight has shape \[5120, 768\].*\[4096, 768\].*for a 13B LLM "
        r"with a 7B LLM in model.llama_model: take",
    ),
    "template of another family, by manifest": (
        lambda p: {"model.ckpt": branch(p, template="vicuna")},
        r"model.ckpt: .*trained with the template vicuna.*model_type=pretrain_vicuna",
    ),
    "stage-1 file for a chat": (
        lambda p: {"model.ckpt": branch(p, stage=1)},
        r"model.ckpt: .*saved after stage 1 .*stage-2 file; train stage 2 from it",
    ),
    "truncated safetensors": (
        lambda p: {"model.ckpt": truncated(branch(p))},
        r"model.ckpt: .*branch.safetensors is not a complete safetensors file.*download",
    ),
    "truncated pth": (
        lambda p: {"model.ckpt": truncated(deaf_model(p))},
        r"model.ckpt: .*whole.pth cannot be read as a torch file.*may be truncated: compare",
    ),
    "a part without weights": (
        lambda p: {"model.ckpt": deaf_model(p), "model.random_init": False},
        r"no file has the weights of audio_encoder; give it in model.imagebind_ckpt_path, or",
    ),
    "file of another part": (
        lambda p: {"model.imagebind_ckpt_path": branch(p)},
        r"model.imagebind_ckpt_path: .*(no tensor of this file has a place|unknown)",
    ),
    "damaged tokenizer": (
        lambda p: {"model.llama_model": llm(p / "llm", tokenizer="junk " * 9)},
        r"model.llama_model: .*tokenizer.model: .*no LLaMA tokenizer.*damaged",
    ),
    "device that is not there": (
        lambda p: {"run.device": "cuda:0"},
        r"run.device: cuda:0 given, .*sees none on this machine; use run.device=auto or cpu",
    ),
    "folder without tables": (
        lambda p: training(p, **{f"{DATA}.anno_dir": content(p / "a/b.txt", "x")[:-6]}),
        r"datasets.webvid.*no .csv or .tsv file in it; it holds",
    ),
    "JSON of another shape": (
        lambda p: {
            **training(p),
            "datasets": {
                "llava_instruct": {
                    "build_info": {
                        "anno_dir": content(p / "llava.json", '{"a": 1}'),
                        "videos_dir": str(p),
                    },
                    "vis_processor": {"train": {"name": "blip2_image_train", "image_size": 84}},
                }
            },
        },
        r"datasets.llava_instruct.*llava.json.*expected",
    ),
}
