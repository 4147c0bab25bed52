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


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """Runs `video-llama` in this process with the shared tiny model: status, output, errors."""
    from tests.tiny_chat import run_command  # loads the whole package

    return lambda *argv, stdin="": run_command(monkeypatch, capsys, argv, stdin)
