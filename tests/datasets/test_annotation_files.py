"""Annotations that are no files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from video_llama.datasets.records import read_json
from video_llama.datasets.tables import read_tables
from video_llama.types import ConfigError


def read_table(path: Path) -> None:
    read_tables(path, ["id"], key="id", caption="id")


@pytest.mark.parametrize("read", [read_json, read_table])
def test_a_pipe_or_a_device_is_refused_and_not_waited_for(tmp_path: Path, read: object) -> None:
    assert callable(read)
    pipe = tmp_path / "a.csv"
    os.mkfifo(pipe)
    for path in (pipe, Path("/dev/zero")):
        with pytest.raises(ConfigError, match=f"{path}: a pipe or a device given"):
            read(path)


def test_a_pipe_in_a_folder_of_tables_is_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.csv")
    with pytest.raises(ConfigError, match=r"a\.csv: a pipe or a device given"):
        read_table(tmp_path)
