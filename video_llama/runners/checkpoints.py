"""Checkpoints: one folder each, which is whole or does not exist.

`<run>/checkpoints/step-000123/` holds the branch (for `model.ckpt`), the state of the training and
`complete.json`, which is written last and holds the sizes and hashes of the other two. A run
resumes from one of them if its configuration is still the same.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import math
import os
import re
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from video_llama.common.io import DiskFullError, atomic_write, is_disk_full
from video_llama.types import ConfigError, WeightsError

logger = logging.getLogger(__name__)

LATEST = "latest"
FOLDER = "checkpoints"
BRANCH = "branch.safetensors"
STATE = "state.pt"
COMPLETE = "complete.json"

_NAME = re.compile(r"step-\d+")
_UNREADABLE = (OSError, RuntimeError, EOFError, ValueError, LookupError, UnpicklingError)
"""What torch raises at a damaged file."""


@dataclass(frozen=True, order=True)
class Checkpoint:
    """A complete checkpoint; the latest saved compares as the largest."""

    saved_at: float
    """Seconds since 1970."""
    step: int
    """Steps done."""
    path: Path
    metric: float | None = None
    """Validation loss at that step; None where there was no validation."""
    hashes: dict[str, str] = field(default_factory=dict, compare=False)
    """SHA-256 of the files by their names; checkpoints of older versions have none."""

    @classmethod
    def read(cls, path: Path) -> Checkpoint | None:
        """Read the checkpoint in a folder; None where it is not complete."""
        # Sizes tell a file that was cut short; the hashes are compared only when it is loaded.
        try:
            seal = json.loads((path / COMPLETE).read_text(encoding="utf-8"))
            whole = all((path / n).stat().st_size == size for n, size in seal["files"].items())
            metric = None if seal["metric"] is None else float(seal["metric"])
            hashes = dict(seal.get("sha256", {}))
            found = cls(float(seal["saved_at"]), int(seal["step"]), path, metric, hashes)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, OverflowError):
            return None
        return found if whole else None

    def branch(self) -> dict[str, Tensor]:
        """Load the trained tensors by their names.

        Raises:
            WeightsError: the file is damaged.
        """
        try:
            for name in self.hashes:  # also what lies beside the branch, such as an adapter
                if name != STATE:
                    self._check(name)
            return load_file(self.path / BRANCH)
        except (SafetensorError, OSError, ValueError) as error:
            raise self._damaged(BRANCH, error) from error

    def state(self) -> dict[str, Any]:
        """Load what `CheckpointStore.save` was given as state.

        Raises:
            WeightsError: the file is damaged, though it has the right size.
        """
        try:
            self._check(STATE)
            state = torch.load(self.path / STATE, map_location="cpu", weights_only=True)
        except _UNREADABLE as error:
            raise self._damaged(STATE, error) from error
        if not isinstance(state, dict):
            raise self._damaged(STATE, TypeError(f"{type(state).__name__} found, dict expected"))
        return state

    def _check(self, name: str) -> None:
        """Compare the hash: neither format notices a changed bit of a tensor."""
        if name in self.hashes and _hash(self.path / name) != self.hashes[name]:
            raise ValueError(f"its SHA-256 is not the one in {COMPLETE}")

    def _damaged(self, name: str, error: Exception) -> WeightsError:
        # Another checkpoint of the same run is nearly as good, so the message names one.
        others = [p for p in checkpoint_folders(self.path.parent) if p != self.path]
        hint = f"run.resume_ckpt_path={others[-1]}" if others else "there is no other one beside it"
        reason = str(error).partition("\n")[0][:200]
        return WeightsError(
            f"{self.path / name}: damaged ({reason}); go on from another checkpoint: {hint}"
        )


class CheckpointStore:
    """The checkpoints of one run.

    Args:
        run_folder: of the run; this process alone writes to it.
        keep_last: newest ones to keep; 0: all.
        keep_best: keep the one with the lowest metric too.
    """

    def __init__(self, run_folder: Path, *, keep_last: int, keep_best: bool) -> None:
        self.folder = run_folder / FOLDER
        self._keep_last = keep_last
        self._keep_best = keep_best

    def save(
        self,
        step: int,
        *,
        write_branch: Callable[[Path], None],
        state: dict[str, Any],
        metric: float | None,
    ) -> Checkpoint:
        """Write a checkpoint, then delete those that are not to be kept.

        Args:
            write_branch: writes the branch file to a path, and what belongs to it into folders
                beside it.
            state: tensors and plain values; more would not load with `weights_only`.
            metric: validation loss at this step, if there was one.

        Raises:
            DiskFullError: no room; the earlier checkpoints are as they were.
        """
        final = self.folder / f"step-{step:06d}"
        temporary = self.folder / f".{final.name}.{os.getpid()}.tmp"
        try:
            self._remove_leftovers()
            # All files are written under a name that nobody reads, the seal last of all. Renaming
            # the folder is the one moment at which the checkpoint comes into being.
            temporary.mkdir(parents=True)
            write_branch(temporary / BRANCH)
            _write(temporary / STATE, _pickled(state))
            written = sorted(path for path in temporary.rglob("*") if path.is_file())
            files = {p.relative_to(temporary).as_posix(): p.stat().st_size for p in written}
            hashes = {name: _hash(temporary / name) for name in files}
            seal = {"step": step, "saved_at": time.time(), "metric": metric, "files": files}
            _write(temporary / COMPLETE, json.dumps(seal | {"sha256": hashes}).encode())
            _remove(final)  # of a run that was resumed from before it
            temporary.rename(final)
            _sync(self.folder)
        except BaseException as error:
            # Also when the user interrupts: what is left of it would only take room.
            shutil.rmtree(temporary, ignore_errors=True)
            if isinstance(error, DiskFullError) or is_disk_full(error):
                raise self._disk_full(step, error) from error
            raise
        self._prune()
        saved = Checkpoint.read(final)
        assert saved is not None, f"{final} was just sealed"
        return saved

    def all(self) -> list[Checkpoint]:
        """List the complete checkpoints, in the order in which they were saved."""
        found = (Checkpoint.read(path) for path in checkpoint_folders(self.folder))
        return sorted(c for c in found if c is not None)

    def _prune(self) -> None:
        checkpoints = self.all()
        keep = checkpoints[-self._keep_last :] if self._keep_last else checkpoints
        # A loss that was not finite compares with nothing: it is never the best.
        measured = [
            (c.metric, c) for c in checkpoints if c.metric is not None and math.isfinite(c.metric)
        ]
        if self._keep_best and measured:
            keep = [*keep, min(measured)[1]]
        for checkpoint in checkpoints:
            if checkpoint not in keep:
                _remove(checkpoint.path)

    def _remove_leftovers(self) -> None:
        for path in self.folder.glob(".step-*.tmp"):
            shutil.rmtree(path, ignore_errors=True)

    def _disk_full(self, step: int, error: BaseException) -> DiskFullError:
        # How much is needed is known from the checkpoints before, which are of the same size.
        kept = self.all()
        sizes = [sum(f.stat().st_size for f in c.path.iterdir()) for c in kept]
        free = shutil.disk_usage(self.folder).free
        needed = f"{max(sizes) / 1e6:.1f} MB" if sizes else "room for the branch and its optimiser"
        return DiskFullError(
            f"no room for the checkpoint of step {step} in {self.folder} ({free / 1e6:.1f} MB "
            f"free, {needed} needed): {len(kept)} earlier ones ({sum(sizes) / 1e6:.1f} MB) are "
            "intact; delete some of them or other files of that disk, or lower run.keep_last, and "
            f"go on with run.resume_ckpt_path={self.folder.parent} ({error})"
        )


def checkpoint_folders(folder: Path) -> list[Path]:
    """List the sub-folders that are named like checkpoints, complete or not."""
    return sorted(p for p in folder.glob("step-*") if _NAME.fullmatch(p.name) and p.is_dir())


def _pickled(state: dict[str, Any]) -> memoryview:
    # Into memory first: torch's own writer hides the system's "disk full" behind an error of its
    # own. A branch's state is a few hundred megabytes at most.
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getbuffer()


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _write(path: Path, content: bytes | memoryview) -> None:
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def _remove(path: Path) -> None:
    """Delete a checkpoint; without its seal, what is left at any moment is not complete."""
    (path / COMPLETE).unlink(missing_ok=True)
    shutil.rmtree(path, ignore_errors=True)


def _sync(folder: Path) -> None:
    # The new name is on the disk only after the folder itself is.
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def find_checkpoint(wanted: str, output_dir: Path) -> Checkpoint | None:
    """Find the checkpoint that `run.resume_ckpt_path` means.

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
    # A path that the user has typed must exist, where "latest" may find nothing.
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
    # A damaged newest one is worth a warning: the run goes further back than the user expects.
    found = {path: Checkpoint.read(path) for path in paths}
    for path in [path for path, checkpoint in found.items() if checkpoint is None]:
        logger.warning("%s is passed over: it is damaged or not complete", path)
    return max((c for c in found.values() if c is not None), default=None)


def check_unchanged(saved: dict[str, Any], current: dict[str, Any], where: Path) -> None:
    """Compare what a checkpoint was trained with and what it would go on with.

    Args:
        saved: `{"fixed": {key: value}, "free": {key: value}}` of the checkpoint. The fixed ones
            decide which weights train and which data they see at which step. The free ones may
            change, with a warning. `items`, where both sides have it, holds a fingerprint of each
            annotation and is fixed too.

    Raises:
        ConfigError: a fixed one differs; lists all that do.
    """
    # All differences at once: to learn of them one by one would take as many starts.
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
    """Compare the steps done by the checkpoint at `where` with the length of the run.

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
