"""All commands with their options: what `--help` shows, as data."""

from __future__ import annotations

import os
from argparse import RawDescriptionHelpFormatter
from pathlib import Path

from video_llama.apps.cli.options import ANSWERS, MODEL, OVERRIDES, WEIGHTS, Command, option
from video_llama.apps.page.options import ServerOptions
from video_llama.common.io import positive
from video_llama.datasets.base import DATASETS, SPLITS

WORKERS = option("--workers N", os.cpu_count() or 1, "processes (default: all cores)")
NO_PROGRESS = option("--no-progress", False, "show no progress bar")
YAML = option("cfg_path YAML", str, "the configuration")

FORMAT = option(
    "--model_type --model-type",
    str,
    "format of the conversation (default: that of the configuration)",
    choices=["vicuna", "llama_v2"],
)

DATA_SOURCE = (
    option("source SOURCE", str, f"a YAML, or one of {', '.join(DATASETS)}"),
    OVERRIDES,
    option("--data-set NAME", str, "only this data set of the YAML"),
    option("--split SPLIT", "train", f"one of {', '.join(SPLITS)}", choices=list(SPLITS)),
    option("--anno-dir PATH", str, "build_info.anno_dir, without a YAML"),
    option("--videos-dir DIR", str, "build_info.videos_dir, without a YAML"),
    option("--storage PATH", str, "build_info.storage, without a YAML"),
    WORKERS,
)
DATA_EXAMPLES = """examples:
  video-llama data check train_configs/visionbranch_stage1_pretrain.yaml \\
      --sample 500
  video-llama data check webvid --anno-dir clips.csv --videos-dir clips/ \\
      --json report.json
  video-llama data pack webvid packed/ --anno-dir clips.csv \\
      --videos-dir clips/ --size 224
  video-llama data synth --out data/world --num-clips 1000 --seed 0
"""

SERVER = ServerOptions()
# Defaults and types are those of ServerOptions, which also checks the values.
PAGE = (
    option(
        "--server-name ADDRESS",
        SERVER.server_name,
        "where to listen; 0.0.0.0: the network (default %(default)s, this machine)",
    ),
    option(
        "--allow-host NAME",
        [],
        "a further name by which browsers open the page, such as that of a proxy; may be repeated "
        "(loopback, --server-name and --share are allowed anyway)",
    ),
    option("--port N", int, "TCP port (default: the first free one from 7860)"),
    option("--share", False, "also a public address, through a tunnel of Gradio's makers"),
    option("--auth USER:PASSWORD", str, "visitors must log in"),
    option("--max-file-mb N", SERVER.max_file_mb, "largest file, MB"),
    option("--max-upload-gb N", SERVER.max_upload_gb, "most that an address may upload a day, GB"),
    option("--max-minutes N", SERVER.max_minutes, "longest clip or sound, minutes"),
    option("--max-queue N", SERVER.max_queue, "most visitors who wait for their turn"),
    option("--concurrency N", SERVER.concurrency, "most visitors who are served at the same time"),
)
SYNTH = (
    option("--out DIR", Path, "folder to make", required=True),
    option("--num-clips N", int, "clips of the training split", required=True),
    option("--seed S", 0, "of everything that is drawn by chance"),
    option("--size PIXELS", 96, "pixels of the shorter side"),
    option("--fps F", 8.0, "frames per second"),
    option("--split NAME", [], "train, valid, test or test_pairs; may be repeated (default: all)"),
    WORKERS,
)
EVALUATE = (
    option("questions JSON", Path, "questions with answers"),
    option("--media-dir DIR", Path, "where the clips lie (default: by the JSON)"),
    option("--limit N", positive, "most questions of a type"),
    option(
        "--condition NAME",
        [],
        "what to give the model: all, withheld, other, picture, sound or shuffled; may be repeated "
        "(default: each in turn)",
    ),
    option("--out FILE", Path, "JSON of scores and answers"),
    option("--picture FILE", Path, "PNG, SVG or PDF of the scores"),
    option("--page FILE", Path, "HTML page of ten clips with their answers"),
    option("--seed N", 0, "of shuffled frames and of the page"),
    NO_PROGRESS,
)
ESTIMATE = (
    option(
        "--gpu NAME",
        "a100-80g",
        "a100-40g, a100-80g, h100, h200, rtx3090, rtx4090, l4, v100, t4, or cpu: this machine, "
        "measured now (default a100-80g)",
    ),
    option("--gpus N", 1, "how many", type=positive),
    option(
        "--llama",
        str,
        "size of the LLM (default: by model.llama_model/config.json, or the folder's name)",
        choices=("7b", "13b"),
    ),
    option("--text-tokens N", positive, "tokens of a row beside its media (default: typical ones)"),
    option("--new-tokens N", 128, "length of a chat's answer", type=positive),
    option("--cores N", 8, "processor cores that decode for one GPU", type=positive),
    option("--feature-cache", False, "as from its second epoch on, when the encoders rest"),
    option("--json", False, "print one JSON object"),
)

# In the order of --help: asking, checking, data, scores. `data check` is a command of `data`.
COMMANDS = {
    "ask": Command(
        "ask:ask",
        "one answer about clips, pictures and sounds",
        "Answer one question about clips, pictures and sounds. "
        'Example: video-llama ask clip.mp4 "What happens?"',
        # One list: argparse could not tell the question from the files.
        [
            option("inputs ARG", str, "files, then a question", nargs="+"),
            option("--json", False, "print one JSON object with the details"),
            *MODEL,
        ],
        {"answers": ANSWERS},
        {"usage": 'video-llama ask [options] FILE [FILE ...] "QUESTION"'},
    ),
    "chat": Command(
        "ask:chat",
        "a conversation in the terminal",
        "Talk about clips, pictures and sounds. /help lists what else can be typed.",
        [option("inputs FILE", str, "clips, pictures and sounds", nargs="*"), *MODEL],
        {"answers": ANSWERS},
    ),
    "batch": Command(
        "batch:batch",
        "many questions of a file, answered together",
        "Answer the questions of a JSONL file: one object a line, such as "
        '{"question": "What happens?", "video": "a.mp4"}. The answers stand in OUT, in the same '
        "order; run again, it goes on behind the last one.",
        [
            option("source IN.jsonl", str, "the questions"),
            option("target OUT.jsonl", str, "the answers"),
            option("--media-dir DIR", str, "where the files lie (default: beside IN.jsonl)"),
            option("--batch-size N", 8, "answers at once"),
            option("--overwrite", False, "begin anew where OUT exists"),
            NO_PROGRESS,
            *MODEL,
        ],
        {"answers": ANSWERS},
    ),
    "demo": Command(
        "demo:demo",
        "a conversation in the browser",
        "Serve the chat page. It stays on this machine unless --server-name or --share says "
        "otherwise. Also: python demo_audiovideo.py",
        [FORMAT, option("--gpu-id N", int, "which GPU (default: run.device of the YAML)"), *MODEL],
        {"page": PAGE},
    ),
    "doctor": Command(
        "tools:doctor",
        "check a configuration before anything heavy",
        "Check every path, file, shape and setting of a YAML, and estimate its memory. With "
        "--weights: say first what each file of the folder is.",
        [
            option(
                "cfg_path YAML",
                str,
                "the configuration (with --weights, by default the one that fits them)",
                nargs="?",
            ),
            WEIGHTS,
            OVERRIDES,
        ],
    ),
    "convert": Command(
        "tools:convert",
        "released .pth files to .safetensors, and back",
        "Convert weights: .pth to .safetensors (only what is needed, loads faster), or a branch "
        ".safetensors to a .pth that the original loads.",
        [
            option("source IN", str, "a .pth, .pt, .bin or .safetensors file"),
            option("target OUT", str, "a .safetensors or .pth file"),
            option("--force", False, "replace OUT if it exists"),
        ],
    ),
    "merge": Command(
        "tools:merge",
        "a LoRA adapter and its LLaMA to a plain LLaMA",
        "Write a plain LLaMA whose weights hold the changes of a LoRA adapter.",
        [
            option("llama LLAMA", str, "folder of the LLaMA that the adapter was trained with"),
            option("adapter ADAPTER", str, "folder of the adapter, beside its branch"),
            option("target OUT", str, "folder to make"),
        ],
    ),
    "export": Command("", "the model in the form of other libraries"),
    "export hf": Command(
        "tools:export_hf",
        "a folder for transformers: from_pretrained, pipelines, PEFT",
        "Write a folder for transformers, with configuration, weights, tokenizer, processor and "
        "model card; --weights takes it, too.",
        [option("target OUT", str, "folder to make"), *MODEL],
    ),
    "data": Command(
        "",
        "check, pack or make data sets",
        parser={"epilog": DATA_EXAMPLES, "formatter_class": RawDescriptionHelpFormatter},
    ),
    "data check": Command(
        "data:check",
        "look for missing, corrupt, silent and equal media",
        options=[
            *DATA_SOURCE,
            option("--sample N", positive, "items to read of each set (default: all)"),
            option("--json FILE", Path, "write a report with all findings"),
        ],
    ),
    "data pack": Command(
        "data:pack",
        "write webdataset tars, with an index beside each",
        options=[
            *DATA_SOURCE,
            option("out DIR", Path, "folder of the tars; a folder in it for each data set"),
            option("--size PIXELS", positive, "scale down: pixels of the shorter side"),
            option("--samples-per-shard N", 1000, "items of a tar", type=positive),
        ],
    ),
    "data synth": Command(
        "data:synth",
        "write the synthetic world: clips, pictures, sounds, questions",
        "Write clips, pictures and sounds of the synthetic world (docs/world.md) in the formats "
        "of the real data sets, with questions to score a model with.",
        SYNTH,
    ),
    "evaluate": Command(
        "evaluate:evaluate",
        "score answers about clips",
        "Exact match by type of question, with chance and 95 % intervals, and what is left of it "
        "without media, with other media, with frames shuffled in time.",
        [*EVALUATE, *MODEL],
    ),
    "estimate": Command(
        "tools:estimate",
        "what a configuration costs: memory, time, arithmetic",
        "Parameters, arithmetic, memory, samples per second and hours of a training YAML, or "
        "memory and tokens per second of a chat YAML. Needs no weights. "
        "Example: video-llama estimate X.yaml --gpus 8 --gpu a100-80g",
        [YAML, *ESTIMATE, OVERRIDES],
    ),
}
