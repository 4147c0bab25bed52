from __future__ import annotations

import errno
import json
import logging
import math
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from video_llama.common.io import DiskFullError
from video_llama.runners.checkpoints import (
    Checkpoint,
    CheckpointStore,
    check_length,
    check_unchanged,
    find_checkpoint,
)
from video_llama.types import ConfigError, WeightsError

STATE: dict[str, Any] = {"step": 1, "moments": torch.arange(4.0), "nested": {"count": 3}}


def write_branch(path: Path) -> None:
    save_file({"proj.weight": torch.ones(8, 8)}, path)


def store(folder: Path, *, keep_last: int = 0, keep_best: bool = False) -> CheckpointStore:
    return CheckpointStore(folder, keep_last=keep_last, keep_best=keep_best)


def save(store: CheckpointStore, step: int, metric: float | None = None) -> Checkpoint:
    return store.save(step, write_branch=write_branch, state=STATE, metric=metric)


def steps(store: CheckpointStore) -> list[int]:
    return [checkpoint.step for checkpoint in store.all()]


def test_checkpoint_gives_back_what_was_saved(tmp_path: Path) -> None:
    saved = save(store(tmp_path), 123, metric=0.5)
    assert saved.path == tmp_path / "checkpoints/step-000123"
    assert sorted(p.name for p in saved.path.iterdir()) == [
        "branch.safetensors",
        "complete.json",
        "state.pt",
    ]
    assert saved.metric == 0.5
    assert torch.equal(saved.branch()["proj.weight"], torch.ones(8, 8))
    state = saved.state()
    assert torch.equal(state.pop("moments"), STATE["moments"])
    assert state == {"step": 1, "nested": {"count": 3}}


@pytest.mark.parametrize("name", ["branch.safetensors", "state.pt", "complete.json"])
def test_half_of_a_checkpoint_is_none(name: str, tmp_path: Path) -> None:
    saved = save(store(tmp_path), 1)
    (saved.path / name).write_bytes((saved.path / name).read_bytes()[:-1])
    assert Checkpoint.read(saved.path) is None
    (saved.path / name).unlink()
    assert Checkpoint.read(saved.path) is None
    assert steps(store(tmp_path)) == []


def test_leftovers_of_a_crash_are_not_taken_for_a_checkpoint_and_go_away(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints/.step-000005.77.tmp"
    left.mkdir(parents=True)
    write_branch(left / "branch.safetensors")
    assert steps(store(tmp_path)) == []
    save(store(tmp_path), 6)
    assert not left.exists()


def test_newest_are_kept_and_the_best(tmp_path: Path) -> None:
    kept = store(tmp_path, keep_last=2, keep_best=True)
    for step, metric in ((1, 0.9), (2, 0.1), (3, 0.5), (4, None), (5, 0.6)):
        save(kept, step, metric)
    assert steps(kept) == [2, 4, 5]


def test_a_better_one_takes_the_place_of_the_best(tmp_path: Path) -> None:
    kept = store(tmp_path, keep_last=1, keep_best=True)
    for step, metric in ((1, 0.5), (2, 0.4), (3, 0.9)):
        save(kept, step, metric)
    assert steps(kept) == [2, 3]


@pytest.mark.parametrize(
    ("losses", "left"), [((math.nan, 0.5, 0.7), [2, 3]), ((0.5, math.nan, 0.7), [1, 3])]
)
def test_a_loss_that_is_not_finite_is_never_the_best(
    losses: tuple[float, ...], left: list[int], tmp_path: Path
) -> None:
    kept = store(tmp_path, keep_last=1, keep_best=True)
    for step, loss in enumerate(losses, start=1):
        save(kept, step, loss)
    assert steps(kept) == left


def test_zero_keeps_all(tmp_path: Path) -> None:
    kept = store(tmp_path, keep_last=0)
    for step in range(1, 6):
        save(kept, step)
    assert steps(kept) == [1, 2, 3, 4, 5]


def test_a_run_that_goes_back_keeps_what_it_saves_then(tmp_path: Path) -> None:
    kept = store(tmp_path, keep_last=2)
    for step in (10, 20, 30):
        save(kept, step)
    save(kept, 15)
    assert steps(kept) == [30, 15]


def test_saving_a_step_again_replaces_it(tmp_path: Path) -> None:
    first, again = save(store(tmp_path), 1, 0.5), save(store(tmp_path), 1, 0.25)
    assert again.path == first.path
    assert store(tmp_path).all() == [again]


@pytest.mark.parametrize("failing", ["branch.safetensors", "state.pt", "complete.json"])
def test_full_disk_leaves_the_earlier_checkpoint_and_says_what_to_free(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = store(tmp_path)
    save(kept, 1)
    write_bytes = Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        if failing in path.name:
            write_bytes(path, content[: len(content) // 2])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write_bytes(path, content)

    def branch(path: Path) -> None:
        if failing in path.name:
            raise RuntimeError("I/O error: No space left on device (os error 28)")
        write_branch(path)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(DiskFullError) as caught:
        kept.save(2, write_branch=branch, state=STATE, metric=None)
    message = str(caught.value)
    assert "step 2" in message
    assert "1 earlier ones" in message
    assert "run.keep_last" in message
    assert f"run.resume_ckpt_path={tmp_path}" in message
    assert steps(kept) == [1]
    assert kept.all()[0].state()["step"] == 1
    assert [p.name for p in kept.folder.iterdir()] == ["step-000001"]


def test_other_errors_while_saving_are_not_called_a_full_disk(tmp_path: Path) -> None:
    def broken(path: Path) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        store(tmp_path).save(1, write_branch=broken, state=STATE, metric=None)
    assert list((tmp_path / "checkpoints").iterdir()) == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 300 kB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mount = shutil.which("mount") or "mount"
    command = [mount, "-t", "tmpfs", "-o", "size=300k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as error:
        pytest.skip(f"cannot mount a small file system here: {error}")
    if done.returncode:
        pytest.skip(f"cannot mount a small file system here: {done.stderr.strip()}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("large", ["branch", "state"])
def test_a_disk_that_is_really_full(large: str, small_disk: Path) -> None:
    kept = store(small_disk)
    save(kept, 1)
    too_much = torch.zeros(200_000)

    def branch(path: Path) -> None:
        save_file({"w": too_much if large == "branch" else torch.zeros(1)}, path)

    state = {"step": 2, "w": too_much} if large == "state" else STATE
    with pytest.raises(DiskFullError, match="no room for the checkpoint of step 2"):
        kept.save(2, write_branch=branch, state=state, metric=None)
    assert steps(kept) == [1]
    assert torch.equal(kept.all()[0].branch()["proj.weight"], torch.ones(8, 8))
    save(kept, 2)


def swapped(content: bytes) -> bytes:
    """Noise in the middle."""
    middle = len(content) // 3
    return content[:middle] + bytes(middle) + content[2 * middle :]


@pytest.mark.parametrize("damage", [lambda content: bytes(len(content)), swapped])
def test_damage_that_keeps_the_size_is_told_with_another_checkpoint(
    damage: Callable[[bytes], bytes], tmp_path: Path
) -> None:
    kept = store(tmp_path)
    first, saved = save(kept, 1), save(kept, 2)
    for name in ("state.pt", "branch.safetensors"):
        (saved.path / name).write_bytes(damage((saved.path / name).read_bytes()))
    found = Checkpoint.read(saved.path)
    assert found is not None
    with pytest.raises(
        WeightsError, match=rf"state\.pt: damaged .*run.resume_ckpt_path={first.path}"
    ):
        found.state()
    with pytest.raises(WeightsError, match=r"branch\.safetensors: damaged"):
        found.branch()


def one_bit(content: bytes) -> bytes:
    """One bit of the last tensor is another."""
    return content[:-5] + bytes([content[-5] ^ 1]) + content[-4:]


def test_one_changed_bit_is_damage(tmp_path: Path) -> None:
    saved = save(store(tmp_path), 1)
    for name, read in (("branch.safetensors", saved.branch), ("state.pt", saved.state)):
        (saved.path / name).write_bytes(one_bit((saved.path / name).read_bytes()))
        with pytest.raises(WeightsError, match=rf"{name}: damaged \(its SHA-256 is not"):
            read()


def test_checkpoint_of_an_older_version_has_no_hashes(tmp_path: Path) -> None:
    saved = save(store(tmp_path), 1)
    seal = json.loads((saved.path / "complete.json").read_text())
    del seal["sha256"]
    (saved.path / "complete.json").write_text(json.dumps(seal))
    found = Checkpoint.read(saved.path)
    assert found is not None
    assert found.state()["step"] == 1


@pytest.mark.parametrize(
    "change",
    [
        {"files": math.nan},
        {"files": ["state.pt"]},
        {"metric": "low"},
        {"metric": [1]},
        {"step": math.inf},
        {"saved_at": None},
        {"sha256": 1},
    ],
)
def test_a_seal_of_odd_types_is_none(change: dict[str, Any], tmp_path: Path) -> None:
    saved = save(store(tmp_path), 1)
    seal = json.loads((saved.path / "complete.json").read_text())
    (saved.path / "complete.json").write_text(json.dumps(seal | change))
    assert Checkpoint.read(saved.path) is None


def test_another_file_of_torch_is_no_state(tmp_path: Path) -> None:
    saved = save(store(tmp_path), 1)
    torch.save([1, 2], saved.path / "state.pt")
    with pytest.raises(WeightsError, match="list found, dict expected"):
        replace(saved, hashes={}).state()


def test_latest_is_the_newest_of_all_runs(tmp_path: Path) -> None:
    save(store(tmp_path / "first"), 500)
    newest = save(store(tmp_path / "second"), 20)
    assert find_checkpoint("latest", tmp_path) == newest


def test_latest_starts_a_run_where_there_is_none(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert find_checkpoint("latest", tmp_path) is None
    assert "starting a new run" in caplog.text


def test_a_run_and_a_checkpoint_can_be_named(tmp_path: Path) -> None:
    first, second = save(store(tmp_path / "a"), 1), save(store(tmp_path / "a"), 2)
    save(store(tmp_path / "b"), 3)
    elsewhere = Path("elsewhere")
    assert find_checkpoint(str(tmp_path / "a"), elsewhere) == second
    assert find_checkpoint(str(tmp_path / "a/checkpoints"), elsewhere) == second
    assert find_checkpoint(str(first.path), elsewhere) == first


def test_incomplete_checkpoints_are_passed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    whole, half = save(store(tmp_path / "a"), 1), save(store(tmp_path / "a"), 2)
    (half.path / "complete.json").unlink()
    assert find_checkpoint("latest", tmp_path) == whole
    assert f"{half.path} is passed over" in caplog.text
    with pytest.raises(ConfigError, match=r"no complete checkpoint .* beside it is .*step-000001"):
        find_checkpoint(str(half.path), tmp_path)


@pytest.mark.parametrize("wanted", ["nowhere", "branch.safetensors"])
def test_a_path_that_is_no_folder_is_an_error(wanted: str, tmp_path: Path) -> None:
    (tmp_path / "branch.safetensors").touch()
    with pytest.raises(ConfigError, match=r"run\.resume_ckpt_path: .* is not a folder"):
        find_checkpoint(str(tmp_path / wanted), tmp_path)


def test_what_decides_the_data_may_not_change() -> None:
    saved = {"fixed": {"run.seed": 1, "number of processes": 2}, "free": {}}
    now = {"fixed": {"run.seed": 3, "number of processes": 2}, "free": {}}
    check_unchanged(saved, saved, Path("run"))
    with pytest.raises(ConfigError, match=r"run\.seed: 1 in the checkpoint, 3 now") as caught:
        check_unchanged(saved, now, Path("run"))
    assert "processes" not in str(caught.value)
    assert "model.ckpt=run/branch.safetensors" in str(caught.value)


def test_an_annotation_may_not_change_but_need_not_be_known() -> None:
    plain: dict[str, Any] = {"fixed": {}, "free": {}}
    saved, now = (plain | {"items": {"datasets.webvid": text}} for text in ("4 items", "3 items"))
    with pytest.raises(ConfigError, match=r"datasets\.webvid: '4 items' in the checkpoint, '3 it"):
        check_unchanged(saved, now, Path("run"))
    check_unchanged(plain, now, Path("run"))
    check_unchanged(saved, plain | {"items": {}}, Path("run"))


def test_a_run_does_not_end_before_its_checkpoint(caplog: pytest.LogCaptureFixture) -> None:
    check_length(1, 2, Path("run"))
    assert not caplog.text
    check_length(2, 2, Path("run"))
    assert "all 2 steps are done: raise run.max_epoch" in caplog.text
    with pytest.raises(ConfigError, match=r"run has 3 steps behind it, but run\.max_epoch times"):
        check_length(3, 2, Path("run"))


def test_what_is_new_or_gone_is_a_difference_too() -> None:
    with pytest.raises(ConfigError, match=r"datasets\.laion\.data_type: 'nothing' in"):
        check_unchanged(
            {"fixed": {}, "free": {}},
            {"fixed": {"datasets.laion.data_type": "images"}, "free": {}},
            Path("run"),
        )


def test_what_only_steers_may_change_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    saved, now = ({"fixed": {}, "free": {"run.init_lr": rate}} for rate in (0.1, 0.2))
    with caplog.at_level(logging.WARNING):
        check_unchanged(saved, now, Path("run"))
    assert "run.init_lr: 0.1 in the checkpoint, 0.2 now" in caplog.text
