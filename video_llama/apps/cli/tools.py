"""`video-llama doctor` and `video-llama convert` in a terminal.

`video-llama estimate` in a terminal.
"""

from __future__ import annotations

import argparse
import json
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from video_llama.apps.doctor import path_problems
from video_llama.common.io import one_line, positive
from video_llama.config.load import load_config
from video_llama.types import VideoLlamaError


def doctor(args: Namespace) -> int:
    """Check `args.cfg_path`; one line per problem, or the parts with their memory.

    Returns:
        1 if anything is wrong.
    """
    try:
        cfg = load_config(args.cfg_path, args.options)
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
    print(f"{args.cfg_path}: no problem found")
    return 0


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


if TYPE_CHECKING:
    Commands = argparse._SubParsersAction[argparse.ArgumentParser]


def add_parser(
    commands: Commands, add_overrides: Callable[[argparse.ArgumentParser], None]
) -> None:
    """Add the command.

    Args:
        commands: of the program.
        add_overrides: adds `--options`.
    """
    parser = commands.add_parser(
        "estimate",
        help="what a configuration costs: memory, time, arithmetic",
        description="Parameters, arithmetic, memory, samples per second and hours of a training "
        "YAML, or memory and tokens per second of a chat YAML. Needs no weights. "
        "Example: video-llama estimate X.yaml --gpus 8 --gpu a100-80g",
    )
    parser.add_argument("cfg_path", metavar="YAML", help="the configuration")
    parser.add_argument(
        "--gpu",
        default="a100-80g",
        metavar="NAME",
        help="a100-40g, a100-80g, h100, h200, rtx3090, rtx4090, l4, v100, t4, or cpu: this "
        "machine, measured now (default a100-80g)",
    )
    parser.add_argument(
        "--gpus", type=positive, default=1, metavar="N", help="how many (default 1)"
    )
    parser.add_argument(
        "--llama",
        choices=("7b", "13b"),
        help="size of the LLM (default: model.llama_model/config.json, else by the folder's name)",
    )
    parser.add_argument(
        "--text-tokens",
        type=positive,
        metavar="N",
        help="tokens of a row beside its media (default: typical ones of its data set)",
    )
    parser.add_argument(
        "--new-tokens",
        type=positive,
        default=128,
        metavar="N",
        help="length of a chat's answer (default 128)",
    )
    parser.add_argument(
        "--cores",
        type=positive,
        default=8,
        metavar="N",
        help="processor cores that decode for one GPU (default 8)",
    )
    parser.add_argument(
        "--feature-cache",
        action="store_true",
        help="as from the second epoch of run.feature_cache on, when the encoders rest",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    add_overrides(parser)
    parser.set_defaults(handler="video_llama.apps.cli.tools:estimate")


def estimate(args: Namespace) -> int:
    """Print what `args.cfg_path` costs on `args.gpus` of `args.gpu`."""
    from video_llama.apps.estimate.hardware import (
        cpu_rates,
        find_gpu,
        gpu_rates,
        on_cpu,
        this_machine,
    )
    from video_llama.apps.estimate.measure import meta_model
    from video_llama.apps.estimate.plan import ChatPlan, TrainingPlan, plan_chat, plan_training
    from video_llama.apps.estimate.report import as_text, as_values

    cfg = load_config(args.cfg_path, args.options)
    if args.gpu == "cpu":
        gpu, rates, cfg = this_machine(), cpu_rates(), on_cpu(cfg)
    else:
        gpu = find_gpu(args.gpu)
        rates = gpu_rates(gpu)
    model, text = meta_model(cfg, args.llama), args.text_tokens
    plan: TrainingPlan | ChatPlan
    if cfg.model.trained_branch is None or cfg.run.evaluate:
        plan = plan_chat(cfg, model, gpu, rates, text_tokens=text, new_tokens=args.new_tokens)
    else:
        plan = plan_training(
            cfg,
            model,
            gpu,
            rates,
            gpus=args.gpus,
            text_tokens=text,
            cores=args.cores,
            features_cached=True if args.feature_cache else None,
        )
    if args.json:
        print(json.dumps(as_values(plan, gpu), indent=1))
    else:
        print(as_text(plan, gpu))
    return 0
