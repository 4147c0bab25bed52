"""`video-llama evaluate` in a terminal."""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from dataclasses import asdict
from pathlib import Path

from video_llama.config import load_config
from video_llama.resources import default_config_path


def evaluate(args: Namespace) -> int:
    """Score a model on the questions of a file; prints a table and writes JSON."""
    cfg = load_config(args.cfg_path or default_config_path(), args.options)
    from tqdm import tqdm

    from video_llama.build import build_model
    from video_llama.evaluate import CONDITIONS, Examiner, read_questions
    from video_llama.tasks.scoring import score_table, scores_of

    path = Path(args.questions)
    media = Path(args.media_dir) if args.media_dir else path.parent
    questions = read_questions(path, media, limit=args.limit)
    examiner = Examiner(build_model(cfg), seed=args.seed)
    paths = dict.fromkeys(question.path for question in questions)
    clips = {p: examiner.read(p) for p in tqdm(paths, desc="clips", disable=not args.progress)}
    answers = [
        answer for condition in CONDITIONS for answer in examiner.ask(questions, clips, condition)
    ]
    scores = scores_of(answers)
    print(score_table(scores))
    if args.out:
        content = {
            "config": str(args.cfg_path or default_config_path()),
            "questions": str(path),
            "seed": args.seed,
            "scores": [score.to_json() for score in scores],
            "answers": [asdict(answer) | {"is_right": answer.is_right} for answer in answers],
        }
        Path(args.out).write_text(json.dumps(content, indent=1, ensure_ascii=False), "utf-8")
        print(f"details: {args.out}", file=sys.stderr)
    return 0
