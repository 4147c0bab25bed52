"""`video-llama evaluate` in a terminal."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from video_llama.common.io import default_config_path, positive
from video_llama.config.load import load_config
from video_llama.types import ConfigError

if TYPE_CHECKING:
    from video_llama.apps.evaluate.examine import Examiner
    from video_llama.apps.evaluate.questions import ClipQuestion
    from video_llama.apps.evaluate.scores import Score, ScoredAnswer


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add the command `evaluate`; the options of the model are for the caller to add.

    Args:
        commands: what `ArgumentParser.add_subparsers` returned.
    """
    evaluate: argparse.ArgumentParser = commands.add_parser(
        "evaluate",
        help="score answers about clips",
        description="Exact match by type of question, with chance and 95 % intervals, and what is "
        "left of it without media, with other media, with frames shuffled in time.",
    )
    evaluate.add_argument("questions", type=Path, metavar="JSON", help="questions with answers")
    evaluate.add_argument(
        "--media-dir", type=Path, metavar="DIR", help="where the clips lie (default: by the JSON)"
    )
    evaluate.add_argument("--limit", type=positive, metavar="N", help="most questions of a type")
    evaluate.add_argument(
        "--condition",
        action="append",
        dest="conditions",
        metavar="NAME",
        help="what to give the model: all, withheld, other, picture, sound or shuffled; "
        "may be repeated (default: each in turn)",
    )
    evaluate.add_argument("--out", type=Path, metavar="FILE", help="JSON of scores and answers")
    evaluate.add_argument(
        "--picture", type=Path, metavar="FILE", help="PNG, SVG or PDF of the scores"
    )
    evaluate.add_argument(
        "--page", type=Path, metavar="FILE", help="HTML page of ten clips with their answers"
    )
    evaluate.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of shuffled frames and of the page"
    )
    evaluate.add_argument(
        "--no-progress", dest="progress", action="store_false", help="show no progress bar"
    )
    evaluate.set_defaults(handler="video_llama.apps.cli.evaluate:evaluate")
    return evaluate


def evaluate(args: argparse.Namespace) -> int:
    """Score a model on the questions of a file; prints a table, and writes what is asked for."""
    from video_llama.apps.evaluate.questions import read_questions

    _check(args)
    cfg = load_config(args.cfg_path or default_config_path(), args.options)
    questions = read_questions(
        args.questions, args.media_dir or args.questions.parent, limit=args.limit
    )
    from video_llama.apps.evaluate.examine import Examiner
    from video_llama.apps.evaluate.scores import score_table, scores_of
    from video_llama.config.build import build_model

    examiner = Examiner(build_model(cfg), seed=args.seed)
    answers = _answers(args, examiner, questions)
    scores = scores_of(answers)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("Right answers in percent (95 % interval)\n")
    print(score_table(scores, width=width))
    _write(args, examiner, questions, answers, scores)
    return 0


def _check(args: argparse.Namespace) -> None:
    """Refuse before the work what would be refused after it.

    Raises:
        ConfigError: a condition is unknown, or the folder of a file to write is not there.
    """
    from video_llama.apps.evaluate.questions import CONDITIONS

    args.conditions = list(dict.fromkeys(args.conditions or CONDITIONS))
    unknown = [name for name in args.conditions if name not in CONDITIONS]
    if unknown:
        raise ConfigError(f"--condition {unknown[0]}: one of {', '.join(CONDITIONS)} expected")
    for option in ("out", "picture", "page"):
        path = getattr(args, option)
        if path is not None and not path.absolute().parent.is_dir():
            raise ConfigError(f"--{option} {path}: there is no folder {path.absolute().parent}")
    if args.picture is not None:
        from video_llama.apps.evaluate.report import check_suffix

        check_suffix(args.picture)


def _answers(
    args: argparse.Namespace, examiner: Examiner, questions: Sequence[ClipQuestion]
) -> list[ScoredAnswer]:
    from tqdm import tqdm

    paths = dict.fromkeys(question.path for question in questions)
    quiet = not args.progress
    clips = {path: examiner.read(path) for path in tqdm(paths, desc="clips", disable=quiet)}
    answers = []
    with tqdm(total=len(questions) * len(args.conditions), desc="answers", disable=quiet) as bar:
        for condition in args.conditions:
            for answer in examiner.ask(questions, clips, condition):
                answers.append(answer)
                bar.update()
    return answers


def _write(
    args: argparse.Namespace,
    examiner: Examiner,
    questions: Sequence[ClipQuestion],
    answers: Sequence[ScoredAnswer],
    scores: Sequence[Score],
) -> None:
    if args.out:
        content = {
            "config": str(args.cfg_path or default_config_path()),
            "questions": str(args.questions),
            "seed": args.seed,
            "scores": [score.to_json() for score in scores],
            "answers": [asdict(answer) | {"is_right": answer.is_right} for answer in answers],
        }
        args.out.write_text(json.dumps(content, indent=1, ensure_ascii=False), "utf-8")
    if args.picture:
        from video_llama.apps.evaluate.report import write_picture

        write_picture(args.picture, scores)
    if args.page:
        from video_llama.apps.evaluate.report import choose_samples, write_page

        samples = choose_samples(questions, answers, seed=args.seed)
        shown = [(sample, examiner.look(sample.question.path)) for sample in samples]
        write_page(args.page, shown, scores, seed=args.seed)
    for name, path in (("details", args.out), ("picture", args.picture), ("page", args.page)):
        if path:
            print(f"{name}: {path}", file=sys.stderr)
