"""`video-llama evaluate`: scores of a model on a file of questions.

One bad clip or question is counted and listed, and fails the command at its end. The others are
answered.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from video_llama.common.io import (
    atomic_write,
    check_file,
    default_config_path,
    one_line,
    shown,
)
from video_llama.config.load import load_config
from video_llama.types import ConfigError, MediaError

if TYPE_CHECKING:
    from video_llama.apps.evaluate.examine import Examiner
    from video_llama.apps.evaluate.questions import ClipQuestion
    from video_llama.apps.evaluate.scores import Score, ScoredAnswer

Failure = dict[str, str]
"""A question that was not answered: item_id, question, reason, and the condition if not all."""

_LISTED_REASONS = 10


def evaluate(args: argparse.Namespace) -> int:
    """Score a model on the questions of a file; prints a table, and writes what is asked for.

    Returns:
        1 if a question could not be asked, else 0.
    """
    from video_llama.apps.evaluate.questions import read_questions

    _check(args)
    cfg = load_config(args.cfg_path, args.options, weights=args.weights)
    questions = read_questions(
        args.questions, args.media_dir or args.questions.parent, limit=args.limit
    )
    # What is known to fail before the model is loaded, which takes long, is said before it.
    problems = {path: _file_problem(path) for path in {question.path for question in questions}}
    reasons = [question.error or problems[question.path] for question in questions]
    failures = [_failure(q, reason) for q, reason in zip(questions, reasons, strict=True) if reason]
    if len(failures) == len(questions):
        _report_failures(failures)
        raise ConfigError(f"{args.questions}: none of its {len(questions)} questions can be asked")
    if failures:
        print(f"{len(failures)} of {len(questions)} questions cannot be asked", file=sys.stderr)
    from video_llama.apps.evaluate.examine import Examiner
    from video_llama.apps.evaluate.scores import score_table, scores_of
    from video_llama.config.build import build_model
    from video_llama.processors.worker import start_decoding

    start_decoding()  # while the model is loaded
    examiner = Examiner(build_model(cfg), seed=args.seed)
    answers: list[ScoredAnswer] = []
    try:
        _answer(args, examiner, questions, answers, failures)
    finally:
        # Also after an interrupt or a full GPU: hours of answers are not lost with it.
        failures += [_failure(a.question, a.error, a.condition) for a in answers if a.error]
        answers = [answer for answer in answers if not answer.error]
        scores = scores_of(answers)
        if args.out:
            _write_details(args, answers, scores, failures)
    if answers:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print("Right answers in percent (95 % interval)\n")
        print(shown(score_table(scores, width=width), keep="\n"))
        _write_pictures(args, examiner, questions, answers, scores)
    _report_failures(failures)
    return 1 if failures else 0


def _check(args: argparse.Namespace) -> None:
    """Refuse before the work what would be refused after it.

    Raises:
        ConfigError: a condition is unknown, or a file cannot be written.
    """
    from video_llama.apps.evaluate.questions import CONDITIONS

    # A typing error must not be found after an hour of decoding.
    args.condition = list(dict.fromkeys(args.condition or CONDITIONS))
    unknown = [name for name in args.condition if name not in CONDITIONS]
    if unknown:
        raise ConfigError(f"--condition {unknown[0]}: one of {', '.join(CONDITIONS)} expected")
    for option in ("out", "picture", "page"):
        path = getattr(args, option)
        if path is None:
            continue
        folder = path.absolute().parent
        if not folder.is_dir():
            raise ConfigError(f"--{option} {path}: there is no folder {folder}")
        if path.is_dir() or (path.exists() and not path.is_file()):
            raise ConfigError(f"--{option} {path}: it is a folder or a device, a file was expected")
        if not os.access(folder, os.W_OK):
            raise ConfigError(f"--{option} {path}: its folder may not be written to")
    if args.picture is not None:
        from video_llama.apps.evaluate.report import check_suffix

        check_suffix(args.picture)


def _file_problem(path: Path) -> str:
    try:
        check_file(path)
    except MediaError as error:
        return str(error)
    return ""


def _failure(question: ClipQuestion, reason: str, condition: str = "") -> Failure:
    kept = {"item_id": question.item_id, "question": question.question, "reason": reason}
    return kept | ({"condition": condition} if condition else {})


def _answer(
    args: argparse.Namespace,
    examiner: Examiner,
    questions: Sequence[ClipQuestion],
    answers: list[ScoredAnswer],
    failures: list[Failure],
) -> None:
    """Read the clips, then ask under every condition; fills `answers` and `failures`."""
    from tqdm import tqdm

    # Left out of every condition, so that all scores are of the same questions.
    left_out = {failure["item_id"] for failure in failures}
    questions = [question for question in questions if question.item_id not in left_out]
    quiet, clips, problems = args.no_progress, {}, {}
    paths = dict.fromkeys(question.path for question in questions)
    for path in tqdm(paths, desc="clips", disable=quiet):
        try:
            clips[path] = examiner.read(path)
        except MediaError as error:
            problems[path] = str(error)
    failures += [_failure(q, problems[q.path]) for q in questions if q.path in problems]
    questions = [question for question in questions if question.path in clips]
    with tqdm(total=len(questions) * len(args.condition), desc="answers", disable=quiet) as bar:
        for condition in args.condition:
            for answer in examiner.ask(questions, clips, condition):
                answers.append(answer)
                bar.update()


def _report_failures(failures: Sequence[Failure]) -> None:
    """List what failed, with the same reason once."""
    # A missing folder fails every question for the same reason. Once is enough to read.
    reasons = Counter(failure["reason"] for failure in failures)
    for reason, count in reasons.most_common(_LISTED_REASONS):
        print(f"failed ({count}): {one_line(reason)}", file=sys.stderr)
    if len(reasons) > _LISTED_REASONS:
        more = len(reasons) - _LISTED_REASONS
        print(f"... and {more} more reasons (--out lists all)", file=sys.stderr)
    if failures:
        count = len({failure["item_id"] for failure in failures})
        were = "question was" if count == 1 else "questions were"
        print(f"{count} {were} not answered", file=sys.stderr)


def _write_details(
    args: argparse.Namespace,
    answers: Sequence[ScoredAnswer],
    scores: Sequence[Score],
    failures: Sequence[Failure],
) -> None:
    content = {
        "config": str(args.cfg_path or args.weights or default_config_path()),
        "questions": str(args.questions),
        "seed": args.seed,
        "scores": [score.to_json() for score in scores],
        "answers": [answer.to_json() for answer in answers],
        "failures": failures,
    }
    # Half an emoji, or a file name that is not UTF-8, becomes the escape that JSON has for it.
    text = json.dumps(content, indent=1, ensure_ascii=False)
    with atomic_write(args.out) as temporary:
        temporary.write_text(text, "utf-8", errors="backslashreplace")
    print(f"details: {args.out}", file=sys.stderr)


def _write_pictures(
    args: argparse.Namespace,
    examiner: Examiner,
    questions: Sequence[ClipQuestion],
    answers: Sequence[ScoredAnswer],
    scores: Sequence[Score],
) -> None:
    from video_llama.apps.evaluate.report import choose_samples, draw_scores, write_page

    if args.picture:
        draw_scores(scores).savefig(args.picture, dpi=130)
        print(f"picture: {args.picture}", file=sys.stderr)
    if args.page:
        samples = choose_samples(questions, answers, seed=args.seed)
        shown_clips = [(sample, examiner.look(sample.question.path)) for sample in samples]
        write_page(args.page, shown_clips, scores, seed=args.seed)
        print(f"page: {args.page}", file=sys.stderr)
