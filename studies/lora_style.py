"""Teach a way of answering with and without LoRA: `python -m studies.lora_style --data data/tiny`.

The language model of the tiny preset has never written an exclamation mark. Stage 2 goes on from
the branch that ships, on the same questions with a mark after each answer. A branch alone can only
choose its few tokens; an adapter changes the language model itself. Counted on test questions:
answers that end with the mark, and answers that are right but for it.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from video_llama.chat.batch import BatchAnswerer
from video_llama.chat.engine import Chat
from video_llama.chat.requests import BatchRequest, RequestMedia
from video_llama.common.io import default_config_path, package_file, resource
from video_llama.config.build import build_model
from video_llama.config.load import load_config

ARMS = {"branch alone": [], "branch and LoRA": ["model.lora_r=8", "run.lora_lr=3e-3"]}
MARK = "!"
KINDS = ("kind", "colour", "motion")


def write_marked(data: Path, out: Path) -> Path:
    """Write the training conversations with a mark after each answer."""
    source = data / "train/webvid_instruct.json"
    items = json.loads(source.read_text("utf-8"))
    for item in items:
        for pair in item["QA"]:
            pair["a"] += MARK
    out.mkdir(parents=True, exist_ok=True)
    path = out / "marked.json"
    path.write_text(json.dumps(items), "utf-8")
    return path


def train(data: Path, out: Path, annotation: Path, *, seed: int, steps: int, arm: str) -> Path:
    """Train an arm; return its last checkpoint."""
    output = out / f"{arm.replace(' ', '_')}_{seed}"
    options = [
        f"model.ckpt={package_file('presets/tiny/video_branch.safetensors')}",
        "datasets.cc_sbu_align=null",
        "datasets.llava_instruct=null",
        f"datasets.webvid_instruct.build_info.anno_dir={annotation}",
        f"datasets.webvid_instruct.build_info.videos_dir={data / 'train/clips'}",
        f"run.feature_cache={(out / 'features').absolute()}",
        f"run.iters_per_epoch={steps}",
        # Gently: the branch knows its answers already.
        "run.init_lr=2e-4",
        "run.min_lr=2e-5",
        f"run.seed={seed}",
        f"run.output_dir={output}",
        *ARMS[arm],
    ]
    config = resource("train_configs/tiny/visionbranch_stage2_finetune.yaml")
    command = [sys.executable, "train.py", "--cfg-path", str(config), "--options", *options]
    if not list(output.glob(f"*/checkpoints/step-{steps:06d}")):
        subprocess.run(command, check=True)
    return next(output.glob(f"*/checkpoints/step-{steps:06d}"))


def score(checkpoint: Path, data: Path, limit: int) -> dict[str, float]:
    """Ask the test questions about clips, without their sound."""
    options = ["run.device=cpu", f"model.ckpt={checkpoint / 'branch.safetensors'}"]
    if (checkpoint / "adapter").is_dir():
        options.append(f"model.lora_ckpt={checkpoint / 'adapter'}")
    # The audio branch was trained beside another language model, and is not asked.
    options += [
        "model.ckpt_2=null",
        "model.imagebind_ckpt_path=null",
        "model.equip_audio_branch=false",
    ]
    chat = Chat(build_model(load_config(default_config_path(), options)), in_worker=False)
    asked = json.loads((data / "test/questions.json").read_text("utf-8"))
    asked = [q for q in asked if q["type"] in KINDS and not q["contradictory"]][:limit]
    answered = BatchAnswerer(chat).answer(
        [
            BatchRequest(
                index,
                entry["question"],
                (RequestMedia(data / "test" / entry["path"], "video", use_audio=False),),
                {"temperature": 0.0, "max_new_tokens": 16},
            )
            for index, entry in enumerate(asked)
        ]
    )
    texts = [
        (answer.answer or "", entry["answer"])
        for answer, entry in zip(answered, asked, strict=True)
    ]
    return {
        "marked": statistics.fmean(text.endswith(MARK) for text, _ in texts),
        "right": statistics.fmean(text.rstrip(MARK) == truth for text, truth in texts),
        "both": statistics.fmean(text == truth + MARK for text, truth in texts),
        "count": len(texts),
    }


def main() -> None:
    """Train both arms with every seed, print the shares and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--data", type=Path, default=Path("data/tiny"))
    parser.add_argument("--out", type=Path, default=Path("output/lora_style"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--limit", type=int, default=240, help="test questions")
    parser.add_argument("--result", type=Path, default=Path("benchmarks/results/study_lora.json"))
    args = parser.parse_args()
    annotation = write_marked(args.data.absolute(), args.out)
    runs: list[dict[str, Any]] = []
    for seed in args.seeds:
        for arm in ARMS:
            checkpoint = train(
                args.data.absolute(), args.out, annotation, seed=seed, steps=args.steps, arm=arm
            )
            runs.append({"arm": arm, "seed": seed, **score(checkpoint, args.data, args.limit)})
            print(json.dumps(runs[-1]), flush=True)
    content = {"study": "lora", "steps": args.steps, "runs": runs}
    args.result.write_text(json.dumps(content, indent=1) + "\n", "utf-8")


if __name__ == "__main__":
    main()
