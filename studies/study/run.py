"""Running a study: its trainings, the features of the clips, the scores of its arms.

What is done is kept, and made again only where something that it depends on has changed.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from studies.study.definitions import Arm, BranchTraining, Study
from video_llama.apps.evaluate.questions import ClipQuestion, read_questions
from video_llama.common.io import atomic_write, default_config_path
from video_llama.config.load import load_config
from video_llama.config.schema import Config
from video_llama.models.settings import Branch
from video_llama.synthetic.quickstart.stages import (
    Launch,
    Trained,
    answering_options,
    inputs_of,
    run_stage,
)
from video_llama.synthetic.splits import Split

Job = TypeVar("Job")
Outcome = TypeVar("Outcome")


@dataclass(frozen=True, kw_only=True)
class StudyRun:
    """How a study is run."""

    study: Study
    data: Path
    """Folder of the world."""
    out: Path
    """Keeps trainings, features of clips and scores."""
    seeds: tuple[int, ...]
    splits: tuple[Split, ...]
    """Splits whose questions are asked."""
    limit: int | None = None
    """Most questions of a type; None: all."""
    steps_scale: float = 1.0
    """Factor on the length of the trainings."""
    options: tuple[str, ...] = ()
    """`section.key=value` each, for every training."""

    def launch(self, seed: int) -> Launch:
        """Return how the trainings of a seed are run; they share what the frozen parts compute."""
        # Logged densely enough for the curves; features are computed once for all trainings.
        lean = (f"run.feature_cache={self.out.absolute() / 'features'}", "run.log_every=10")
        options = (*lean, *self.options, f"run.seed={seed}", "run.device=cpu")
        return Launch(data=self.data, options=options, steps_scale=self.steps_scale)

    def questions(self, split: Split) -> list[ClipQuestion]:
        """Read what is asked about the clips of a split."""
        folder = self.data / split
        return read_questions(folder / "questions.json", folder, limit=self.limit)


def run_study(run: StudyRun, *, jobs: int = 1) -> dict[str, Any]:
    """Train, encode and score what has not been yet, in `jobs` processes of one thread each.

    Returns:
        Plain values: how it was run, the curves of the trainings, and the scores.

    Raises:
        ConfigError: an option is wrong, or the world is not there.
        StageError: a training has failed; the others are kept.
    """
    # In three rounds, each in parallel: scores need the features and the branches.
    trainings, arms = run.study.trainings(), run.study.arms
    pairs = list(product(trainings, run.seeds))
    ended = _each(_train, [(run, *pair) for pair in pairs], "trainings", jobs)
    trained = dict(zip(pairs, ended, strict=True))
    _each(_encode, [(run, *pair) for pair in product(_encoders(run), run.splits)], "clips", jobs)
    scorings = []
    for arm, seed, split in product(arms, run.seeds, run.splits):
        branches = {t.branch: trained[t, seed][-1].branch_path for t in arm.trainings}
        scorings.append((run, arm, seed, split, branches))
    return {
        "study": run.study.name,
        "seeds": list(run.seeds),
        "limit": run.limit,
        "steps_scale": run.steps_scale,
        "options": list(run.options),
        "trainings": [_curves(*pair, stages) for pair, stages in trained.items()],
        "runs": _each(_score, scorings, "scores", jobs),
    }


def _each(
    work: Callable[[Job], Outcome], cases: Sequence[Job], title: str, jobs: int
) -> list[Outcome]:
    """Return the outcomes of all cases, in their order, from processes of one thread."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    # Forked processes would inherit the locks of torch's threads.
    context = multiprocessing.get_context("spawn")
    with (
        ProcessPoolExecutor(jobs, mp_context=context) as pool,
        tqdm(total=len(cases), desc=title) as bar,
    ):
        futures = [pool.submit(work, case) for case in cases]
        try:
            for future in as_completed(futures):
                future.result()
                bar.update()
        except BaseException:
            # One failure ends the study, but what is being trained is finished and kept.
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _train(case: tuple[StudyRun, BranchTraining, int]) -> list[Trained]:
    """Run all stages of a training, or return what is kept of them."""
    run, training, seed = case
    out = run.out / "trainings" / f"{training.name}-seed{seed}"
    ended: list[Trained] = []
    for stage in training.stages():
        # Stage 2 starts from the branch of stage 1; an arm without stage 1 from random values.
        start = ended[-1].branch_path if ended else None
        options = training.options_of(stage, run.data)
        ended.append(
            run_stage(
                stage, run.launch(seed), out=out, start=start, options=options, log=out / "log.txt"
            )
        )
    return ended


def _curves(training: BranchTraining, seed: int, trained: Sequence[Trained]) -> dict[str, Any]:
    """Return the losses that a training logged."""
    stages = {
        stage.name: {
            "seconds": one.seconds,
            "loss": [[step, round(loss, 4)] for step, loss in one.loss],
        }
        for stage, one in zip(training.stages(), trained, strict=True)
    }
    # "recipe" is the name of the key in the results that are published.
    return {"recipe": training.name, "seed": seed, "stages": stages}


def _encoders(run: StudyRun) -> list[tuple[str, ...]]:
    """Return the distinct options of the arms: some change the features of clips."""
    return list(dict.fromkeys(arm.options for arm in run.study.arms))


def _clips_file(run: StudyRun, options: Sequence[str], split: Split) -> tuple[Config, Path]:
    """Return a configuration whose encoders read the clips of a split, and the file of features."""
    launch = run.launch(run.seeds[0])
    # The branches have no part in it: random ones, with one seed for all.
    frozen = [*answering_options(launch, {}), "run.seed=0", *options]
    cfg = load_config(default_config_path(), frozen)
    name = f"{split}-{inputs_of(cfg, run.data)}-{run.limit or 'all'}.pt"
    return cfg, run.out / "clips" / name


def _encode(case: tuple[StudyRun, Sequence[str], Split]) -> None:
    run, options, split = case
    cfg, file = _clips_file(run, options, split)
    if file.exists():
        return
    # Torch is imported in the worker, and only where there is something to compute.
    from studies.study.clips import encode_clips
    from video_llama.config.build import build_model

    paths = dict.fromkeys(question.path for question in run.questions(split))
    encode_clips(build_model(cfg), paths, file)


def _score(case: tuple[StudyRun, Arm, int, Split, Mapping[Branch, Path]]) -> dict[str, Any]:
    """Score an arm, or return kept scores if the inputs are those of before."""
    run, arm, seed, split, branches = case
    cfg = _answering(run, arm, seed, branches)
    # Everything that a score depends on: a change of any of it is another score.
    types = {name: list(several) for name, several in run.study.question_types.items()}
    questions = (run.data / split / "questions.json").read_bytes()
    text = json.dumps([inputs_of(cfg, run.data), types, run.limit]).encode()
    inputs = hashlib.sha256(text + questions).hexdigest()[:16]
    path = run.out / "scores" / f"{run.study.name}-{arm.name}-seed{seed}-{split}.json"
    if path.exists() and (kept := json.loads(path.read_text("utf-8")))["inputs"] == inputs:
        return dict(kept["run"])
    result = {
        "arm": arm.name,
        "seed": seed,
        "split": split,
        "scores": _ask(run, cfg, arm, seed, split),
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"inputs": inputs, "run": result}) + "\n", "utf-8")
    return result


def _answering(run: StudyRun, arm: Arm, seed: int, branches: Mapping[Branch, Path]) -> Config:
    """Return the configuration of the model that is scored."""
    # An ablated branch is loaded only into a model that is configured the same way.
    ablations = [option for training in arm.trainings for option in training.options]
    options = [*answering_options(run.launch(seed), branches), *ablations, *arm.options]
    return load_config(default_config_path(), [*options, f"run.seed={seed}"])


def _ask(run: StudyRun, cfg: Config, arm: Arm, seed: int, split: Split) -> list[dict[str, Any]]:
    import torch

    from studies.study.clips import clip_of, read_clips
    from video_llama.apps.evaluate.examine import Examiner
    from video_llama.apps.evaluate.scores import ScoredAnswer, scores_of
    from video_llama.config.build import build_model

    # Shuffled frames and sampled answers follow the seed of the arm.
    model = build_model(cfg)
    examiner, random = Examiner(model, seed=seed), torch.Generator().manual_seed(seed)
    encoded = read_clips(_clips_file(run, arm.options, split)[1])
    clips = {path: clip_of(clip, model, random) for path, clip in encoded.items()}
    answers: list[ScoredAnswer] = []
    for condition, types in run.study.question_types.items():
        questions = [q for q in run.questions(split) if not types or q.type in types]
        answers += examiner.ask(questions, clips, condition)
    keys = ("type", "condition", "right", "count", "chance")
    return [{key: getattr(score, key) for key in keys} for score in scores_of(answers)]
