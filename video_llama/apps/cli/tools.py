"""`video-llama doctor`, `convert` and `estimate` in a terminal."""

from __future__ import annotations

import json
import os
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

from video_llama.apps.doctor import check_paths, path_problems
from video_llama.common.io import one_line
from video_llama.config.load import load_config
from video_llama.types import VideoLlamaError


def doctor(args: Namespace) -> int:
    """Check `args.cfg_path`; one line per problem, or the parts with their memory.

    Returns:
        1 if anything is wrong, 2 if nothing is given.
    """
    if not args.cfg_path and not args.weights:
        usage = "usage: video-llama doctor [YAML] [--weights DIR] [--options KEY=VALUE ...]"
        print(f"{usage}\nvideo-llama doctor: error: neither is given", file=sys.stderr)
        return 2
    try:
        if args.weights:
            _print_inventory(Path(args.weights))
        cfg = load_config(args.cfg_path, args.options, weights=args.weights)
    except VideoLlamaError as error:
        return _report([error])
    problems = list(path_problems(cfg))
    if problems:
        return _report(problems)
    # Only now torch is imported: shapes are worth looking at when every file is there.
    from video_llama.apps.doctor_shapes import examine, memory_table

    problems, model = examine(cfg)
    if problems or model is None:
        return _report(problems)
    print(memory_table(cfg, model))
    print(f"{args.cfg_path or args.weights}: no problem found")
    return 0


def _print_inventory(folder: Path) -> None:
    """Print which file of a folder is which part."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from video_llama.models.weights.find import find_weights
    from video_llama.models.weights.names import PARTS

    inventory = find_weights(folder)
    table = Table(title=f"found in {escape(str(folder))}", title_justify="left")
    table.add_column("part", no_wrap=True)
    for name in ("file", "what it says"):
        table.add_column(name, overflow="fold")
    for part in inventory.parts:
        file = os.path.relpath(part.path, folder)
        table.add_row(PARTS[part.key].title, escape(file), part.detail)
    Console().print(table)
    for reason in inventory.unusable:
        print(f"not usable: {one_line(reason)}")


def _report(problems: Sequence[str | Exception]) -> int:
    for problem in problems:
        print(f"error: {one_line(problem)}", file=sys.stderr)
    return 1


def convert(args: Namespace) -> int:
    """Convert `args.source` to `args.target` and say what became of its tensors."""
    from video_llama.apps.convert import convert

    target = Path(args.target)
    kept, dropped = convert(Path(args.source), target, force=args.force)
    print(f"{target}: {kept} tensors, {target.stat().st_size / 1e6:.1f} MB")
    for reason, count in dropped.items():
        print(f"  {count} of {reason} left out")
    return 0


def export_hf(args: Namespace) -> int:
    """Write the model of `args.cfg_path` or `args.weights` as a folder for transformers."""
    from video_llama.apps.hf.export import export_hf
    from video_llama.config.build import build_model

    cfg = load_config(args.cfg_path, args.options, weights=args.weights)
    check_paths(cfg)
    target = Path(args.target)
    export_hf(build_model(cfg), target)
    size = sum(file.stat().st_size for file in target.iterdir()) / 1e6
    print(f"{target}: {size:,.1f} MB; AutoModelForMultimodalLM.from_pretrained takes it, and")
    print(f'  video-llama ask clip.mp4 "What happens?" --weights {target}')
    return 0


def merge(args: Namespace) -> int:
    """Write `args.llama` with the adapter in `args.adapter` as a plain LLaMA to `args.target`."""
    from video_llama.models.lora import merge_adapter

    merge_adapter(Path(args.llama), Path(args.adapter), Path(args.target))
    print(
        f"{args.target}: use it with --options model.llama_model={args.target}, without lora_ckpt"
    )
    return 0


def estimate(args: Namespace) -> int:
    """Print what `args.cfg_path` costs on `args.gpus` of `args.gpu`."""
    from video_llama.apps.estimate.hardware import find_gpu, on_cpu
    from video_llama.apps.estimate.measure import meta_model
    from video_llama.apps.estimate.plan import ChatPlan, TrainingPlan, plan_chat, plan_training
    from video_llama.apps.estimate.report import as_text, as_values

    cfg, gpu = load_config(args.cfg_path, args.options), find_gpu(args.gpu)
    cfg = on_cpu(cfg) if args.gpu == "cpu" else cfg
    model, text = meta_model(cfg, args.llama), args.text_tokens
    plan: TrainingPlan | ChatPlan
    if cfg.model.trained_branch is None or cfg.run.evaluate:
        plan = plan_chat(cfg, model, gpu, text_tokens=text, new_tokens=args.new_tokens)
    else:
        plan = plan_training(
            cfg,
            model,
            gpu,
            gpus=args.gpus,
            text_tokens=text,
            cores=args.cores,
            features_cached=True if args.feature_cache else None,
        )
    print(json.dumps(as_values(plan, gpu), indent=1) if args.json else as_text(plan, gpu))
    return 0
