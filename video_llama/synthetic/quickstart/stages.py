"""The four training stages of the tiny preset: each is `train.py` with a shipped YAML."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, get_args

from video_llama.common.io import atomic_write, resource
from video_llama.config.load import load_config
from video_llama.config.schema import Config
from video_llama.models.settings import Branch
from video_llama.types import ConfigError, VideoLlamaError

DATA = "data/tiny/"
"""Where the shipped YAMLs look for the world."""
DONE = "stage.json"
"""Written into the folder of a stage when it has ended well."""
WEIGHTS = ("vit_ckpt", "q_former_model", "imagebind_ckpt_path", "llama_model")
"""Keys of the frozen parts' weights."""


@dataclass(frozen=True)
class Stage:
    """One training.

    Attributes:
        name: of its YAML in train_configs/tiny, without suffix.
        branch: what it trains.
        number: 1: captions; 2: instructions, from where the other one ended.
    """

    name: str
    branch: Branch
    number: int

    @property
    def config_path(self) -> Path:
        """Its YAML."""
        return resource(f"train_configs/tiny/{self.name}.yaml")

    @property
    def branch_key(self) -> str:
        """The key of the model section that takes a file of its branch."""
        return "model.ckpt" if self.branch == "video" else "model.ckpt_2"


STAGES = (
    Stage("visionbranch_stage1_pretrain", "video", 1),
    Stage("visionbranch_stage2_finetune", "video", 2),
    Stage("audiobranch_stage1_pretrain", "audio", 1),
    Stage("audiobranch_stage2_finetune", "audio", 2),
)
"""All of them, in an order in which they can be run; the two branches do not need each other."""


class StageError(VideoLlamaError):
    """A training has failed; says what it was and where its log is."""


@dataclass(frozen=True)
class Trained:
    """A stage that has ended.

    Attributes:
        branch_path: the trained branch, for `model.ckpt` or `model.ckpt_2`.
        seconds: that it took.
        loss: (step, loss) pairs, one every `run.log_every` steps.
    """

    branch_path: Path
    seconds: float
    loss: list[tuple[int, float]]


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How stages are run.

    Attributes:
        data: folder of `video-llama data synth`.
        options: `section.key=value` each, for the YAML of every stage.
        steps_scale: factor on the length of the trainings.
        processes: of one training; more than one through torchrun.
        threads: of each process.
    """

    data: Path
    options: Sequence[str] = ()
    steps_scale: float = 1.0
    processes: int = 1
    threads: int = 1

    def options_of(self, stage: Stage) -> list[str]:
        """What is changed in the YAML of a stage; later options win."""
        cfg = load_config(stage.config_path)
        steps = _step_options(cfg, self.steps_scale)
        return [*_data_options(cfg, self.data), *steps, *self.options]


def run_stage(
    stage: Stage,
    launch: Launch,
    *,
    out: Path,
    start: Path | None = None,
    options: Sequence[str] = (),
    log: Path | None = None,
) -> Trained:
    """Train a stage, or take it as it is if it has been trained with the same inputs before.

    Args:
        stage: which.
        launch: how it is run.
        out: gets a folder of the stage's name.
        start: the branch to start from; None: from random values.
        options: more `section.key=value`, which win over those of `launch`.
        log: gets what the training prints; None: the terminal, with a progress bar.

    Raises:
        ConfigError: an option is wrong, or this is not a checkout, which has train.py.
        StageError: the training has failed.
    """
    folder = (out / stage.name).absolute()
    changed = [*launch.options_of(stage), f"{stage.branch_key}={start or 'null'}", *options]
    cfg = load_config(stage.config_path, changed)
    inputs = inputs_of(cfg, launch.data)
    found = _finished(folder, inputs)
    if found is not None:
        return found
    began = time.monotonic()
    command = [*_program(launch), "--cfg-path", str(stage.config_path), "--options", *changed]
    _run([*command, f"run.output_dir={folder}"], stage, launch, log)
    seconds = round(time.monotonic() - began, 1)
    run = max(folder.glob(f"{stage.name}-*"), key=lambda path: path.stat().st_mtime)
    trained = Trained(_last_branch(run, cfg), seconds, _loss(run))
    content = {"inputs": inputs, "branch": str(trained.branch_path.relative_to(folder))}
    with atomic_write(folder / DONE) as path:
        text = json.dumps(content | {"seconds": seconds, "loss": trained.loss})
        path.write_text(text + "\n", "utf-8")
    return trained


def train_branch(
    branch: Branch, launch: Launch, *, out: Path, log: Path | None = None
) -> list[Trained]:
    """Both stages of a branch, the second from where the first ended.

    Args:
        branch: which.
        launch: how they are run.
        out: as in `run_stage`.
        log: as in `run_stage`.

    Raises:
        ConfigError, StageError: as `run_stage`.
    """
    ended: list[Trained] = []
    for stage in STAGES:
        if stage.branch == branch:
            start = ended[-1].branch_path if ended else None
            ended.append(run_stage(stage, launch, out=out, start=start, log=log))
    return ended


def answering_options(launch: Launch, branches: Mapping[Branch, Path]) -> list[str]:
    """Options for eval_configs/tiny.yaml that answer with what was trained.

    Frozen parts and the scale of the sound features are those of the trainings; a branch without a
    file gets random values.

    Args:
        launch: how it was trained.
        branches: files of the trained branches.
    """
    model = load_config(STAGES[-1].config_path, launch.options_of(STAGES[-1])).model
    keys = (*WEIGHTS, "audio_feature_norm")
    options = [f"model.{key}={getattr(model, key) or 'null'}" for key in keys]
    for branch, key in (("video", "ckpt"), ("audio", "ckpt_2")):
        options.append(f"model.{key}={branches.get(branch, 'null')}")  # type: ignore[call-overload]
    random = model.random_init or len(branches) < len(get_args(Branch))
    return [*options, f"model.random_init={random}", "run.device=cpu"]


def inputs_of(cfg: Config, data: Path) -> str:
    """A hash of all that shapes a training: configuration, weight files and the world.

    Args:
        cfg: of the training.
        data: folder of the world.
    """
    run = replace(cfg.run, output_dir="", resume_ckpt_path=None, feature_cache=None, num_workers=0)
    values: dict[str, Any] = asdict(replace(cfg, run=run))
    if cfg.run.feature_cache is None:
        values["run"].pop("num_views")
    for key in (*WEIGHTS, "ckpt", "ckpt_2"):
        given = values["model"][key]
        values["model"][key] = _content(Path(given)) if given else None
    for entry in values["datasets"].values():
        entry["build_info"] = entry["tokenizer_name"] = None
    values["world"] = _content(data / "world.json")
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _content(path: Path) -> str:
    """A hash of a file, or of all files of a folder; empty where there is none."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest() if path.exists() else ""


def _data_options(cfg: Config, data: Path) -> list[str]:
    """The folder of the world in the place of the one in the YAML."""
    options = []
    for name, entry in cfg.datasets.items():
        for key in ("anno_dir", "videos_dir", "storage"):
            value = getattr(entry.build_info, key)
            if value and value.startswith(DATA):
                moved = data.absolute() / value.removeprefix(DATA)
                options.append(f"datasets.{name}.build_info.{key}={moved}")
    return options


def _step_options(cfg: Config, scale: float) -> list[str]:
    if scale == 1:
        return []
    keys = {"iters_per_epoch": 1, "warmup_steps": 0}
    return [
        f"run.{key}={max(least, round(scale * getattr(cfg.run, key)))}"
        for key, least in keys.items()
    ]


def _program(launch: Launch) -> list[str]:
    try:
        script = resource("train.py")
    except FileNotFoundError as error:
        raise ConfigError(f"train.py is only in a checkout of the project: {error}") from error
    torchrun = ["-m", "torch.distributed.run", "--standalone"]
    launcher = [*torchrun, f"--nproc_per_node={launch.processes}"] if launch.processes > 1 else []
    return [sys.executable, *launcher, str(script)]


def _run(command: Sequence[str], stage: Stage, launch: Launch, log: Path | None) -> None:
    environment = os.environ | {
        "OMP_NUM_THREADS": str(launch.threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin slow each other down on shared cores
    }
    if log is None:
        status = subprocess.run(command, env=environment).returncode
        where = "see above"
    else:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            status = subprocess.run(
                command, env=environment, stdout=file, stderr=subprocess.STDOUT
            ).returncode
        where = f"see {log}, which ends\n{_tail(log)}"
    if status:
        raise StageError(f"{stage.name}: train.py ended with status {status}; {where}")


def _tail(log: Path, lines: int = 5) -> str:
    return "\n".join(log.read_text("utf-8", errors="replace").splitlines()[-lines:])


def _last_branch(run: Path, cfg: Config) -> Path:
    steps = cfg.run.max_epoch * cfg.run.iters_per_epoch
    path = run / f"checkpoints/step-{steps:06d}/branch.safetensors"
    if not path.exists():
        raise StageError(f"{run}: stopped before its last step ({steps}); run it again")
    return path


def _loss(run: Path) -> list[tuple[int, float]]:
    lines = map(json.loads, (run / "log.jsonl").read_text("utf-8").splitlines())
    return [(line["step"], line["loss"]) for line in lines if "split" not in line]


def _finished(folder: Path, inputs: str) -> Trained | None:
    try:
        done = json.loads((folder / DONE).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    branch = folder / done["branch"]
    if done["inputs"] != inputs or not branch.exists():
        return None
    return Trained(branch, done["seconds"], [(step, loss) for step, loss in done["loss"]])
