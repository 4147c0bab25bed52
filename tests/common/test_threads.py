"""The programs decide about OpenMP's threads before torch is loaded; the user's settings win."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.reference import ROOT

PROGRAMS = {
    "train.py": "import train; train.main(['--cfg-path', 'nowhere.yaml'])",
    "video-llama": "from video_llama.apps.cli.main import main; main(['doctor', 'nowhere.yaml'])",
    "demo": "from video_llama.apps.cli.main import main; main(['demo', '--cfg-path', 'no.yaml'])",
}
REPORT = """
assert "torch" not in sys.modules, "too late: torch is loaded"
import torch
print(torch.get_num_threads(), *map(os.environ.get, ("OMP_NUM_THREADS", "OMP_WAIT_POLICY")))
"""


def threads_after(program: str, **environment: str) -> list[str]:
    """Return torch's number of threads and the two variables after the start of a program."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "LOCAL_WORLD"))}
    code = f"import os, sys; {PROGRAMS[program]}{REPORT}"
    result = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=clean | environment,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.split()


@pytest.mark.parametrize("program", PROGRAMS)
def test_threads_wait_without_spinning(program: str) -> None:
    count, variable, policy = threads_after(program)
    assert (variable, policy) == ("None", "PASSIVE")
    assert int(count) >= 1, "torch's own choice: the cores of the machine"


def test_processes_of_torchrun_have_one_thread_each() -> None:
    assert threads_after("train.py", LOCAL_WORLD_SIZE="2") == ["1", "1", "PASSIVE"]
    assert threads_after("train.py", LOCAL_WORLD_SIZE="1")[1:] == ["None", "PASSIVE"]


def test_settings_of_the_user_win() -> None:
    given = {"OMP_NUM_THREADS": "3", "OMP_WAIT_POLICY": "ACTIVE"}
    assert threads_after("train.py", LOCAL_WORLD_SIZE="2", **given)[1:] == ["3", "ACTIVE"]
