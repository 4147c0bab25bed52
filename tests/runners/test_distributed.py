from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.reference import ROOT
from video_llama.runners.distributed import ProcessGroup, is_lost_peer
from video_llama.types import ConfigError

PROGRAM = """
import errno, json, os, sys
from pathlib import Path
from video_llama.runners.distributed import ProcessGroup
from video_llama.types import ConfigError

def refuse():
    raise ConfigError("no")

def read_only():
    raise OSError(errno.EROFS, "Read-only file system", "log.jsonl")

group = ProcessGroup("cpu")
found = {"sum": group.sum({"a": group.rank + 1, "b": 0.5}), "gather": group.gather([group.rank])}
found["main"] = group.on_main(lambda: group.rank)
for function in (refuse, read_only):
    try:
        group.on_main(function)
    except (ConfigError, OSError) as error:
        found[function.__name__] = str(error)
group.close()
Path(sys.argv[1], str(group.rank)).write_text(json.dumps(found))
os._exit(0)
"""


def test_two_processes_agree_and_share_the_errors_of_the_main_one(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(PROGRAM)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, str(tmp_path / "program.py"), str(tmp_path)]
    subprocess.run(command, env=environment, check=True, timeout=110)
    for rank in "01":
        assert json.loads((tmp_path / rank).read_text()) == {
            "sum": {"a": 3.0, "b": 1.0},
            "gather": [0, 1],
            "main": 0,
            "refuse": "no",
            "read_only": f"[Errno {errno.EROFS}] Read-only file system: 'log.jsonl'",
        }


def test_one_process_is_alone() -> None:
    group = ProcessGroup("cpu")
    assert (group.rank, group.size, group.is_main, group.device.type) == (0, 1, True, "cpu")
    assert group.sum({"a": 2.0}) == {"a": 2.0}
    assert group.gather([1, 2]) == [1, 2]
    assert group.on_main(lambda: "result") == "result"
    group.close()


def test_one_numbered_gpu_is_not_for_several_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"run\.device: cuda:1 given with several processes"):
        ProcessGroup("cuda:1")


@pytest.mark.parametrize(("text", "lost"), [("Connection closed by peer", True), ("shape", False)])
def test_errors_of_a_process_that_has_ended_are_known(text: str, lost: bool) -> None:
    assert is_lost_peer(RuntimeError(text)) is lost
