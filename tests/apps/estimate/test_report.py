"""Reports name what matters."""

from __future__ import annotations

from tests.apps.estimate.plans import STAGE_1, chat, train
from video_llama.apps.estimate.hardware import GPUS
from video_llama.apps.estimate.report import as_text, as_values


def test_a_training_run() -> None:
    gpu, plan = GPUS["t4"], train(STAGE_1, gpu="t4")
    text = as_text(plan, gpu)
    for word in ("samples/s", "hours", "bottleneck", "DOES NOT FIT", "trained", "frozen"):
        assert word in text
    values = as_values(plan, gpu)
    assert values["kind"] == "training"
    assert values["memory"]["total"] == plan.memory.total


def test_a_chat() -> None:
    text = as_text(chat(), GPUS["a100-40g"])
    assert "tokens/s" in text
    assert "fits: " in text


def test_reports_fit_80_columns() -> None:
    texts = [as_text(chat(), GPUS["a100-40g"]), as_text(train(STAGE_1, gpu="t4"), GPUS["t4"])]
    assert max(len(line) for text in texts for line in text.splitlines()) <= 80
    assert not any("…" in text for text in texts), "a column is cut"
