from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest

from tests.runners.test_checkpoints import save, store
from video_llama.runners.checkpoints import check_length, check_unchanged, find_checkpoint
from video_llama.types import ConfigError


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
