"""What every test relies on."""

from __future__ import annotations

import os
from collections.abc import Callable

# Before torch is imported: the tests run side by side, one thread each.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Some virtual machines announce the processor's matrix unit (AMX) and fail on its instructions.
os.environ.setdefault("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_BF16")
os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import video_llama.common.compat

import pytest
import torch


def pytest_configure(config: pytest.Config) -> None:
    """Hide the GPUs, which `run.device: auto` would take, from all tests but those marked `gpu`."""
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip tests marked `gpu` where there is no GPU."""
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a GPU: `pytest -m gpu` on a machine with one")


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs `video-llama` in this process with the shared tiny model: status, output, errors."""
    from tests.tiny_chat import run_command  # loads the whole package

    return lambda *argv, stdin="": run_command(monkeypatch, capsys, argv, stdin)
