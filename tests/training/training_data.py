"""Small data sets of every format, and the options that train a shipped YAML on them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import load_file

from tests.media import write_picture, write_video
from tests.reference import ROOT

BRANCHES = ("visionbranch", "audiobranch")
STAGE_1, STAGE_2 = "stage1_pretrain", "stage2_finetune"
CAPTIONS = ("a red square", "two blue dogs", "rain on a roof", "the grey sea")


def write_data(folder: Path, *, num_items: int = 4) -> Path:
    """`webvid/`, `align/`, `llava/` and `talk/` under `folder`, with `num_items` items each."""
    folder.mkdir(parents=True, exist_ok=True)
    clips, pictures = folder / "clips/p", folder / "align/image"
    clips.mkdir(parents=True)
    pictures.mkdir(parents=True)
    rows, captions, llava, talks = [], [], [], []
    for i in range(num_items):
        caption = f"{CAPTIONS[i % len(CAPTIONS)]} {i}"
        write_video(clips / f"{i}.mp4", num_frames=8 + i % 3)
        write_picture(pictures / f"{i}.jpg", 40 + i, 30)
        (folder / f"COCO_train2014_{i}.jpg").write_bytes((pictures / f"{i}.jpg").read_bytes())
        rows.append(f"{i},p,{caption}\n")
        captions.append({"image_id": str(i), "caption": caption})
        turns = [("human", "<image>\nWhat is it?"), ("gpt", caption)]
        llava.append(
            {"image": f"{i}.jpg", "conversations": [{"from": f, "value": v} for f, v in turns]}
        )
        talks.append({"video": f"{i}.mp4", "QA": [{"q": "What is it?", "a": caption}]})
    (folder / "csv").mkdir()
    (folder / "csv/0.csv").write_text("videoid,page_dir,name\n" + "".join(rows))
    (folder / "align/filter_cap.json").write_text(json.dumps({"annotations": captions}))
    (folder / "llava.json").write_text(json.dumps(llava))
    (folder / "talk.json").write_text(json.dumps(talks))
    return folder


def tiny_options(branch: str, stage: str, data: Path, output: Path) -> list[str]:
    """Options that point a shipped YAML at the tiny preset and at `write_data`'s folder."""
    options = [
        "model.llama_model=${package:presets/tiny/llama}",
        "model.random_init=true",
        "model.image_size=56",
        "model.vit_config={patch_size: 14, embed_dim: 32, depth: 1, num_heads: 2}",
        "model.qformer_config={hidden_size: 48, num_hidden_layers: 2, num_attention_heads: 4, "
        "intermediate_size: 96}",
        "model.imagebind_config={vision_embed_dim: 32, vision_num_blocks: 1, vision_num_heads: 2, "
        "audio_embed_dim: 32, audio_num_blocks: 1, audio_num_heads: 2, out_embed_dim: 32, "
        "image_size: 56}",
        *(f"model.{key}=4" for key in ("num_query_token", "num_video_query_token")),
        "model.num_audio_query_token=4",
        *(f"model.{key}=null" for key in ("vit_ckpt", "q_former_model", "llama_proj_model")),
        *(f"model.{key}=null" for key in ("imagebind_ckpt_path", "ckpt", "ckpt_2")),
        *(f"model.{key}=fp32" for key in ("vit_precision", "imagebind_precision", "precision")),
        "datasets.cc_sbu_align.vis_processor.train.image_size=56",
        f"datasets.cc_sbu_align.build_info.storage={data}/align",
        *("run.device=cpu", "run.num_workers=0", "run.log_every=1", f"run.output_dir={output}"),
        *("run.init_lr=2e-3", "run.min_lr=1e-3", "run.warmup_steps=0", "run.max_epoch=1"),
        *("run.iters_per_epoch=8", "run.batch_size_train=2", "run.batch_size_eval=2"),
    ]
    if stage == STAGE_1:
        return [*options, *_video_options("webvid", f"{data}/csv", f"{data}/clips")]
    return [
        *options,
        *("datasets.llava_instruct.vis_processor.train.image_size=56",),
        "datasets.llava_instruct.num_video_query_token=4",
        f"datasets.llava_instruct.build_info.anno_dir={data}/llava.json",
        f"datasets.llava_instruct.build_info.videos_dir={data}",
        "datasets.webvid_instruct.num_video_query_token=4",
        *_video_options("webvid_instruct", f"{data}/talk.json", f"{data}/clips/p"),
    ]


def _video_options(name: str, annotation: str, media: str) -> list[str]:
    return [
        f"datasets.{name}.build_info.anno_dir={annotation}",
        f"datasets.{name}.build_info.videos_dir={media}",
        f"datasets.{name}.vis_processor.train.image_size=56",
        f"datasets.{name}.vis_processor.train.n_frms=4",
    ]


def config_path(branch: str, stage: str) -> Path:
    return ROOT / f"train_configs/{branch}_{stage}.yaml"


def command(config: Path, options: Sequence[str], *, processes: int = 0) -> list[str]:
    """`python train.py ...`, or torchrun with that many processes."""
    program = [sys.executable]
    if processes:
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        program += launcher
    return [*program, str(ROOT / "train.py"), "--cfg-path", str(config), "--options", *options]


def environment() -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}


def train(
    config: Path, options: Sequence[str], *, processes: int = 0, status: int = 0
) -> subprocess.CompletedProcess[str]:
    """Run the program to its end, which must be with `status`."""
    result = subprocess.run(
        command(config, options, processes=processes),
        env=environment(),
        capture_output=True,
        text=True,
        timeout=110,
    )
    assert result.returncode == status, result.stderr[-6000:]
    return result


def run_folder(output: Path) -> Path:
    """The only run under an output folder."""
    (folder,) = output.iterdir()
    return folder


def log_lines(run: Path) -> list[dict[str, float]]:
    """The lines of a log, without what depends on the clock."""
    lines = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    keys = ("step", "loss", "lr", "grad_norm", "split")
    return [{key: line[key] for key in keys if key in line} for line in lines]


def losses(run: Path) -> list[float]:
    return [line["loss"] for line in log_lines(run) if "split" not in line]


def branch(run: Path, step: int) -> dict[str, bytes]:
    """The bytes of every tensor of a checkpoint's branch (the file's header has no fixed order)."""
    tensors = load_file(run / f"checkpoints/step-{step:06d}/branch.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in tensors.items()}
