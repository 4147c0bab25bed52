"""Going on with a run: which checkpoint, and whether the configuration is still the same."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

from video_llama.runners.checkpoints import FOLDER, Checkpoint, checkpoint_folders
from video_llama.types import ConfigError

logger = logging.getLogger(__name__)

LATEST = "latest"


def find_checkpoint(wanted: str, output_dir: Path) -> Checkpoint | None:
    """The checkpoint that `run.resume_ckpt_path` means.

    Args:
        wanted: "latest" (the newest complete one under `output_dir`), the folder of a run or of
            several (the newest in it), or a checkpoint.
        output_dir: `run.output_dir`.

    Returns:
        None where "latest" finds none, so that one command both starts and resumes.

    Raises:
        ConfigError: there is no complete checkpoint at the given path.
    """
    if wanted == LATEST:
        newest = _newest(output_dir)
        if newest is None:
            logger.warning("no checkpoint under %s yet: starting a new run", output_dir)
        return newest
    path = Path(wanted)
    if not path.is_dir():
        raise ConfigError(
            f"run.resume_ckpt_path: {wanted} is not a folder; give {LATEST}, the folder of a run, "
            f"or a folder {FOLDER}/step-... in it (a branch file goes to model.ckpt)"
        )
    found = Checkpoint.read(path) or _newest(path)
    if found is None:
        beside = _newest(path.parent)
        hint = f"; the newest complete one beside it is {beside.path}" if beside else ""
        raise ConfigError(f"run.resume_ckpt_path: no complete checkpoint in {wanted}{hint}")
    return found


def _newest(folder: Path) -> Checkpoint | None:
    places = [folder, folder / FOLDER, *folder.glob(f"*/{FOLDER}")]
    paths = [path for place in places for path in checkpoint_folders(place)]
    found = {path: Checkpoint.read(path) for path in paths}
    for path in [path for path, checkpoint in found.items() if checkpoint is None]:
        logger.warning("%s is passed over: it is damaged or not complete", path)
    return max((c for c in found.values() if c is not None), default=None)


def check_unchanged(saved: dict[str, Any], current: dict[str, Any], where: Path) -> None:
    """Compare what a checkpoint was trained with and what it would go on with.

    Args:
        saved: `{"fixed": {key: value}, "free": {key: value}}` of the checkpoint. The fixed ones
            decide which weights train and which data they see at which step; with others it would
            not be the same run, nor with other `items`, the fingerprint of each annotation, where
            both sides have one. The free ones may change, with a warning.
        current: the same of now.
        where: the checkpoint.

    Raises:
        ConfigError: a fixed one differs; lists all that do.
    """
    fixed = _differences(saved["fixed"], current["fixed"])
    if "items" in saved and current.get("items"):  # neither of old checkpoints nor of evaluations
        fixed += _differences(saved["items"], current["items"])
    if fixed:
        raise ConfigError(
            f"run.resume_ckpt_path: the run in {where} cannot go on with another "
            f"{'; another '.join(fixed)}. Restore these, or start a new run from its weights with "
            f"model.ckpt={where}/branch.safetensors (model.ckpt_2 for the audio branch)"
        )
    for difference in _differences(saved["free"], current["free"]):
        logger.warning("resuming with another %s", difference)


def check_length(done: int, wanted: int, where: Path) -> None:
    """Compare the steps of a checkpoint with those of the whole run.

    Args:
        done: by the checkpoint.
        wanted: `run.max_epoch` times `run.iters_per_epoch`.
        where: the checkpoint.

    Raises:
        ConfigError: there are more than the run would have.
    """
    if done > wanted:
        raise ConfigError(
            f"run.resume_ckpt_path: {where} has {done} steps behind it, but run.max_epoch times "
            f"run.iters_per_epoch is {wanted}: raise one, or go on from an earlier checkpoint"
        )
    if done == wanted:
        logger.warning("all %d steps are done: raise run.max_epoch to train longer", wanted)


def _differences(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    absent = "nothing"
    return [
        f"{key}: {saved.get(key, absent)!r} in the checkpoint, {current.get(key, absent)!r} now"
        for key in sorted({*saved, *current})
        if saved.get(key, absent) != current.get(key, absent)
    ]
