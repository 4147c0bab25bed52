"""The four training stages of the tiny preset: each runs `train.py` with a shipped YAML.

A stage that has ended is not run again, unless its configuration, a weight file or the world has
changed.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from tqdm import tqdm

from video_llama.common.io import atomic_write, resource
from video_llama.config.load import load_config
from video_llama.config.schema import Config
from video_llama.models.settings import Branch
from video_llama.types import ConfigError, VideoLlamaError

DATA = "data/tiny/"
"""Where the shipped YAMLs look for the world."""
DONE = "stage.json"
"""Written into the folder of a stage when it has succeeded."""
BRANCH_KEYS: dict[Branch, str] = {"video": "model.ckpt", "audio": "model.ckpt_2"}
"""The branches, in the order of their trainings, and the keys that take a file of each."""
WEIGHTS = ("vit_ckpt", "q_former_model", "imagebind_ckpt_path", "llama_model")
"""Keys of the frozen parts' weights."""


@dataclass(frozen=True)
class Stage:
    """One training of a branch."""

    name: str
    """Name of its YAML in train_configs/tiny, without suffix."""
    branch: Branch
    number: int
    """1: captions; 2: instructions, starting from the branch of stage 1."""

    @property
    def config_path(self) -> Path:
        """The YAML."""
        return resource(f"train_configs/tiny/{self.name}.yaml")


STAGES = (
    Stage("visionbranch_stage1_pretrain", "video", 1),
    Stage("visionbranch_stage2_finetune", "video", 2),
    Stage("audiobranch_stage1_pretrain", "audio", 1),
    Stage("audiobranch_stage2_finetune", "audio", 2),
)
"""All stages, in an order in which they can be run; the two branches are independent."""


class StageError(VideoLlamaError):
    """A training that has failed; names the stage and its log."""


@dataclass(frozen=True)
class Trained:
    """A stage that has ended."""

    branch_path: Path
    """The trained branch, for `model.ckpt` or `model.ckpt_2`."""
    seconds: float
    loss: list[tuple[int, float]]
    """(step, loss) pairs, one every `run.log_every` steps."""


@dataclass(frozen=True, kw_only=True)
class Launch:
    """How stages are run."""

    data: Path
    """Folder that `video-llama data synth` wrote."""
    options: Sequence[str] = ()
    """`section.key=value` each, for the YAML of every stage."""
    steps_scale: float = 1.0
    """Factor on the length of the trainings."""
    processes: int = 1
    """Processes of one training; more than one through torchrun."""
    threads: int = 1
    """Threads of each process."""

    def options_of(self, stage: Stage) -> list[str]:
        """Return what is changed in the YAML of a stage; later options win."""
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
    """Train a stage, or return what it left if it has been trained with the same inputs before.

    Args:
        out: gets a folder of the stage's name.
        start: the branch to start from; None: from random values.
        options: more `section.key=value`, which win over those of `launch`.
        log: gets what the training prints; None: the terminal, with a progress bar.

    Raises:
        ConfigError: an option is wrong, or this is not a checkout, which has train.py.
        StageError: the training has failed.
    """
    folder = (out / stage.name).absolute()
    # The inputs are those of the configuration as the training will read it, overrides included.
    changed = [
        *launch.options_of(stage),
        f"{BRANCH_KEYS[stage.branch]}={start or 'null'}",
        *options,
    ]
    cfg = load_config(stage.config_path, changed)
    inputs = inputs_of(cfg, launch.data)
    found = _finished(folder, inputs)
    if found is not None:
        return found
    # Not a call in this process: torchrun starts several, and a crash must not end the quickstart.
    began = time.monotonic()
    command = [*_program(launch), "--cfg-path", str(stage.config_path), "--options", *changed]
    _run([*command, f"run.output_dir={folder}"], stage, launch, log)
    seconds = round(time.monotonic() - began, 1)
    # Every run has a folder of its own; earlier ones may have been broken off.
    run = max(folder.glob(f"{stage.name}-*"), key=lambda path: path.stat().st_mtime)
    trained = Trained(_last_branch(run, cfg), seconds, _loss(run))
    # Written last: a stage without this file is trained again.
    content = {"inputs": inputs, "branch": str(trained.branch_path.relative_to(folder))}
    with atomic_write(folder / DONE) as path:
        text = json.dumps(content | {"seconds": seconds, "loss": trained.loss})
        path.write_text(text + "\n", "utf-8")
    return trained


def answering_options(launch: Launch, branches: Mapping[Branch, Path]) -> list[str]:
    """Return options for eval_configs/tiny.yaml that answer with what was trained.

    Frozen parts and the scale of the sound features are those of the trainings. A branch without a
    file in `branches` gets random values.
    """
    # Any stage will do: all of them have the same frozen parts.
    model = load_config(STAGES[-1].config_path, launch.options_of(STAGES[-1])).model
    keys = (*WEIGHTS, "audio_feature_norm")
    options = [f"model.{key}={getattr(model, key) or 'null'}" for key in keys]
    options += [f"{key}={branches.get(branch, 'null')}" for branch, key in BRANCH_KEYS.items()]
    random = model.random_init or len(branches) < len(BRANCH_KEYS)
    return [*options, f"model.random_init={random}", "run.device=cpu"]


def inputs_of(cfg: Config, data: Path) -> str:
    """Hash all that shapes a training: configuration, weight files and the world in `data`."""
    # Where results and features are kept, and how many processes read data, changes no number.
    run = replace(cfg.run, output_dir="", resume_ckpt_path=None, feature_cache=None, num_workers=0)
    values: dict[str, Any] = asdict(replace(cfg, run=run))
    if cfg.run.feature_cache is None:
        values["run"].pop("num_views")
    # Files count by their content, wherever they lie.
    for key in (*WEIGHTS, "ckpt", "ckpt_2"):
        given = values["model"][key]
        values["model"][key] = _content(Path(given)) if given else None
    for entry in values["datasets"].values():
        entry["build_info"] = entry["tokenizer_name"] = None
    values["world"] = _content(data / "world.json")
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def _content(path: Path) -> str:
    """Hash a file, or all files of a folder; empty where there is none."""
    digest = hashlib.sha256()
    for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if file.is_file():
            digest.update(file.name.encode() + file.read_bytes())
    return digest.hexdigest() if path.exists() else ""


def _data_options(cfg: Config, data: Path) -> list[str]:
    """Return overrides that put the folder of the world in the place of the one in the YAML."""
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
    # The least value of each: a training of no step has no branch, one without warm-up has.
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
    # `--standalone` takes a free port, so that two trainings can run side by side.
    torchrun = ["-m", "torch.distributed.run", "--standalone"]
    launcher = [*torchrun, f"--nproc_per_node={launch.processes}"] if launch.processes > 1 else []
    return [sys.executable, *launcher, str(script)]


def _run(command: Sequence[str], stage: Stage, launch: Launch, log: Path | None) -> None:
    environment = os.environ | {
        "OMP_NUM_THREADS": str(launch.threads),
        "OMP_WAIT_POLICY": "PASSIVE",  # threads that spin slow each other down on shared cores
    }
    if log is None:
        status, where = subprocess.run(command, env=environment).returncode, "see above"
    else:
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as file:
            status = subprocess.run(
                command, env=environment, stdout=file, stderr=subprocess.STDOUT
            ).returncode
        last = log.read_text("utf-8", errors="replace").splitlines()[-5:]
        where = "\n".join([f"see {log}, which ends", *last])
    if status:
        raise StageError(f"{stage.name}: train.py ended with status {status}; {where}")


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
    # A file that is missing, or was cut short, means the same: not finished.
    try:
        done = json.loads((folder / DONE).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    branch = folder / done["branch"]
    if done["inputs"] != inputs or not branch.exists():
        return None
    return Trained(branch, done["seconds"], [(step, loss) for step, loss in done["loss"]])


TrainStage = Callable[[Stage, Path | None], Trained]
"""Trains a stage from a branch, or from random values where that is None."""

_SECONDS_BETWEEN_LOOKS = 1.0
"""How often the progress bars follow the logs."""


def train_all(train_stage: TrainStage, *, side_by_side: bool) -> dict[Stage, Trained]:
    """Train both stages of both branches, the branches in turn or at the same time."""
    # Threads suffice: each waits for the process of its training.
    with ThreadPoolExecutor(len(BRANCH_KEYS) if side_by_side else 1) as pool:
        ended = [pool.submit(_train_branch, branch, train_stage) for branch in BRANCH_KEYS]
        return {stage: trained for future in ended for stage, trained in future.result().items()}


def _train_branch(branch: Branch, train_stage: TrainStage) -> dict[Stage, Trained]:
    trained: dict[Stage, Trained] = {}
    start: Path | None = None
    for stage in (stage for stage in STAGES if stage.branch == branch):
        trained[stage] = train_stage(stage, start)
        start = trained[stage].branch_path
    return trained


@contextlib.contextmanager
def progress_bars(out: Path, launch: Launch) -> Iterator[None]:
    """Show a bar for each stage while the block lasts.

    The trainings write to log files, so that two of them do not print into each other: the bars
    follow those files.
    """
    bars = {
        stage: tqdm(total=_num_steps(stage, launch), desc=stage.name, unit="step", position=place)
        for place, stage in enumerate(STAGES)
    }
    over = threading.Event()
    follower = threading.Thread(target=_follow, args=(out, bars, over), daemon=True)
    follower.start()
    try:
        yield
    finally:
        over.set()
        follower.join()
        for bar in bars.values():
            bar.close()


def _follow(out: Path, bars: dict[Stage, tqdm[None]], over: threading.Event) -> None:
    waiting = True
    while waiting:
        waiting = not over.wait(_SECONDS_BETWEEN_LOOKS)
        # Also once after the end, for the last steps.
        for stage, bar in bars.items():
            done = steps_done(out / stage.name)
            if done != bar.n or sys.stderr.isatty():  # a file gets no line a second
                bar.n = done
                bar.refresh()


def steps_done(folder: Path) -> int:
    """Return how many steps the latest run in the folder of a stage has logged."""
    logs = sorted(folder.glob("*/log.jsonl"), key=lambda path: path.stat().st_mtime)
    lines = logs[-1].read_text("utf-8").splitlines() if logs else []
    # From the end: the log of a long training has many lines.
    for line in reversed(lines):
        with contextlib.suppress(json.JSONDecodeError):  # a line that is being written
            return int(json.loads(line)["step"])
    return 0


def _num_steps(stage: Stage, launch: Launch) -> int:
    run = load_config(stage.config_path, launch.options_of(stage)).run
    return (run.max_epoch or 1) * (run.iters_per_epoch or 0)
