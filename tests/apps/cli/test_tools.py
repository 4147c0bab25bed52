"""`video-llama estimate` in a terminal."""

from __future__ import annotations

import json

import pytest

from tests.reference import ROOT
from video_llama.apps.cli.main import main
from video_llama.apps.estimate.hardware import GPUS

STAGE_1 = str(ROOT / "train_configs/visionbranch_stage1_pretrain.yaml")


def test_a_training_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["estimate", STAGE_1, "--gpus", "8", "--gpu", "h100", "--json"]
    assert main([*arguments, "--options", "run.batch_size_train=16"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert (values["kind"], values["gpus"], values["gpu"]["name"]) == ("training", 8, "h100")
    expected = 8 * 16 / values["step_seconds"]
    assert values["samples_per_second"] == pytest.approx(expected)


def test_a_chat_configuration(capsys: pytest.CaptureFixture[str]) -> None:
    path = str(ROOT / "eval_configs/video_llama_eval_only_vl.yaml")
    assert main(["estimate", path, "--llama", "13b", "--gpu", "a100-40g"]) == 0
    shown = capsys.readouterr().out
    assert "tokens/s" in shown
    assert "13,015,864,320" in shown


def test_this_machine_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", str(ROOT / "eval_configs/tiny.yaml"), "--gpu", "cpu", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["gpu"]["peaks"]["fp32"] > 1e8
    assert values["first_token_seconds"] > 0


def test_the_help_lists_every_gpu(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["estimate", "--help"])
    listed = " ".join(capsys.readouterr().out.split())
    assert f"{', '.join(GPUS)}, or cpu" in listed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["--gpu", "a1000"], "--gpu: 'a1000' given"), (["--gpu", "cpus"], "did you mean 'cpu'?")],
)
def test_a_wrong_gpu_is_one_line(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["estimate", STAGE_1, *arguments]) == 1
    shown = capsys.readouterr().err
    assert message in shown
    assert len(shown.splitlines()) == 1
