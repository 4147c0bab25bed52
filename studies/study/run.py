"""Runs a study: trains its recipes, encodes the clips, scores its arms; what is done is kept."""

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

from studies.study.plan import Arm, Recipe, Study
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
class Plan:
    """How a study is run.

    Attributes:
        study: which.
        data: folder of the world.
        out: keeps trainings, encoded clips and scores.
        seeds: of each arm.
        splits: whose questions are asked.
        limit: most questions of a type; None: all.
        steps_scale: factor on the length of the trainings.
        options: `section.key=value` each, for every training.
    """

    study: Study
    data: Path
    out: Path
    seeds: tuple[int, ...]
    splits: tuple[Split, ...]
    limit: int | None = None
    steps_scale: float = 1.0
    options: tuple[str, ...] = ()

    def launch(self, seed: int) -> Launch:
        """How the trainings of a seed are run; they share what the frozen parts compute."""
        lean = (f"run.feature_cache={self.out.absolute() / 'features'}", "run.log_every=10")
        options = (*lean, *self.options, f"run.seed={seed}", "run.device=cpu")
        return Launch(data=self.data, options=options, steps_scale=self.steps_scale)

    def questions(self, split: Split) -> list[ClipQuestion]:
        """What is asked about the clips of a split."""
        folder = self.data / split
        return read_questions(folder / "questions.json", folder, limit=self.limit)


def run_study(plan: Plan, *, jobs: int = 1) -> dict[str, Any]:
    """Train, encode and score what has not been yet.

    Args:
        plan: how.
        jobs: processes side by side, of one thread each.

    Returns:
        Plain values: the plan, the curves of the trainings, and the scores.

    Raises:
        ConfigError: an option is wrong, or the world is not there.
        StageError: a training has failed; the others are kept.
    """
    recipes, arms = plan.study.recipes(), plan.study.arms
    pairs = list(product(recipes, plan.seeds))
    ended = _each(_train, [(plan, *pair) for pair in pairs], "trainings", jobs)
    trained = dict(zip(pairs, ended, strict=True))
    _each(_encode, [(plan, *pair) for pair in product(_encoders(plan), plan.splits)], "clips", jobs)
    scorings = []
    for arm, seed, split in product(arms, plan.seeds, plan.splits):
        branches = {r.branch: trained[r, seed][-1].branch_path for r in arm.recipes}
        scorings.append((plan, arm, seed, split, branches))
    return {
        "study": plan.study.name,
        "seeds": list(plan.seeds),
        "limit": plan.limit,
        "steps_scale": plan.steps_scale,
        "options": list(plan.options),
        "trainings": [_curves(*pair, stages) for pair, stages in trained.items()],
        "runs": _each(_score, scorings, "scores", jobs),
    }


def _each(
    work: Callable[[Job], Outcome], cases: Sequence[Job], title: str, jobs: int
) -> list[Outcome]:
    """The outcomes of all cases, in their order, from processes of one thread."""
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
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
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return [future.result() for future in futures]


def _train(case: tuple[Plan, Recipe, int]) -> list[Trained]:
    """All stages of a recipe, or what is kept of them."""
    plan, recipe, seed = case
    out = plan.out / "trainings" / f"{recipe.name}-seed{seed}"
    ended: list[Trained] = []
    for stage in recipe.stages():
        start = ended[-1].branch_path if ended else None
        options = recipe.options_of(stage, plan.data)
        ended.append(
            run_stage(
                stage,
                plan.launch(seed),
                out=out,
                start=start,
                options=options,
                log=out / "log.txt",
            )
        )
    return ended


def _curves(recipe: Recipe, seed: int, trained: Sequence[Trained]) -> dict[str, Any]:
    """What the trainings of a recipe logged."""
    stages = {
        stage.name: {
            "seconds": one.seconds,
            "loss": [[step, round(loss, 4)] for step, loss in one.loss],
        }
        for stage, one in zip(recipe.stages(), trained, strict=True)
    }
    return {"recipe": recipe.name, "seed": seed, "stages": stages}


def _encoders(plan: Plan) -> list[tuple[str, ...]]:
    """The options of the arms that make the features of clips others, once."""
    return list(dict.fromkeys(arm.options for arm in plan.study.arms))


def _clips_file(plan: Plan, options: Sequence[str], split: Split) -> tuple[Config, Path]:
    """A configuration whose encoders read the clips of a split, and where that is kept."""
    launch = plan.launch(plan.seeds[0])
    frozen = [*answering_options(launch, {}), "run.seed=0", *options]
    cfg = load_config(default_config_path(), frozen)
    name = f"{split}-{inputs_of(cfg, plan.data)}-{plan.limit or 'all'}.pt"
    return cfg, plan.out / "clips" / name


def _encode(case: tuple[Plan, Sequence[str], Split]) -> None:
    plan, options, split = case
    cfg, file = _clips_file(plan, options, split)
    if file.exists():
        return
    from studies.study.clips import encode_clips
    from video_llama.config.build import build_model

    paths = dict.fromkeys(question.path for question in plan.questions(split))
    encode_clips(build_model(cfg), paths, file)


def _score(case: tuple[Plan, Arm, int, Split, Mapping[Branch, Path]]) -> dict[str, Any]:
    """The scores of an arm; kept ones if it has been scored with the same inputs before."""
    plan, arm, seed, split, branches = case
    cfg = _answering(plan, arm, seed, branches)
    asked = {name: list(types) for name, types in plan.study.asked.items()}
    questions = (plan.data / split / "questions.json").read_bytes()
    text = json.dumps([inputs_of(cfg, plan.data), asked, plan.limit]).encode()
    inputs = hashlib.sha256(text + questions).hexdigest()[:16]
    path = plan.out / "scores" / f"{plan.study.name}-{arm.name}-seed{seed}-{split}.json"
    if path.exists() and (kept := json.loads(path.read_text("utf-8")))["inputs"] == inputs:
        return dict(kept["run"])
    run = {
        "arm": arm.name,
        "seed": seed,
        "split": split,
        "scores": _ask(plan, cfg, arm, seed, split),
    }
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps({"inputs": inputs, "run": run}) + "\n", "utf-8")
    return run


def _answering(plan: Plan, arm: Arm, seed: int, branches: Mapping[Branch, Path]) -> Config:
    """The configuration of the model that an arm scores."""
    ablations = [option for recipe in arm.recipes for option in recipe.options]
    options = [*answering_options(plan.launch(seed), branches), *ablations, *arm.options]
    return load_config(default_config_path(), [*options, f"run.seed={seed}"])


def _ask(plan: Plan, cfg: Config, arm: Arm, seed: int, split: Split) -> list[dict[str, Any]]:
    import torch

    from studies.study.clips import clip_of, read_clips
    from video_llama.apps.evaluate.examine import Examiner
    from video_llama.apps.evaluate.scores import ScoredAnswer, scores_of
    from video_llama.config.build import build_model

    model = build_model(cfg)
    examiner, random = Examiner(model, seed=seed), torch.Generator().manual_seed(seed)
    encoded = read_clips(_clips_file(plan, arm.options, split)[1])
    clips = {path: clip_of(clip, model, random) for path, clip in encoded.items()}
    answers: list[ScoredAnswer] = []
    for condition, types in plan.study.asked.items():
        questions = [q for q in plan.questions(split) if not types or q.type in types]
        answers += examiner.ask(questions, clips, condition)
    keys = ("type", "condition", "right", "count", "chance")
    return [{key: getattr(score, key) for key in keys} for score in scores_of(answers)]
