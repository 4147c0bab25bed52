"""`doctor` on the shipped full-size configurations, with files of every released name and shape."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.full_model import (
    blip2_flant5xxl,
    branch_file,
    eva_vit_g,
    full_model,
    imagebind_huge,
    stand_in,
    write,
)
from tests.golden_model import TOKENIZER
from tests.tiny_chat import Run
from video_llama.common.io import resource
from video_llama.models.weights.checks import RELEASED_SIZES


@pytest.fixture(scope="module")
def released(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder `ckpt` of the shipped configurations, complete."""
    folder = tmp_path_factory.mktemp("ckpt")
    write(folder / "eva_vit_g.pth", eva_vit_g())
    write(folder / "blip2_pretrained_flant5xxl.pth", blip2_flant5xxl())
    write(folder / "VL_LLaMA_2_7B_Finetuned.pth", branch_file("video"))
    write(folder / "AL_LLaMA_2_7B_Finetuned.pth", branch_file("audio"))
    (folder / "imagebind_path").mkdir()
    write(folder / "imagebind_path/imagebind_huge.pth", imagebind_huge())
    write_llama(folder / "llama-2-7b-chat-hf")
    return folder


def write_llama(folder: Path) -> None:
    """A 7B LLaMA in two shards."""
    folder.mkdir()
    sizes = {"model_type": "llama", "vocab_size": 32000, **RELEASED_SIZES["7b"]}
    (folder / "config.json").write_text(json.dumps(sizes), "utf-8")
    (folder / "tokenizer.model").write_bytes(TOKENIZER.read_bytes())
    prefix = "llama_model."
    shapes = {
        name.removeprefix(prefix): shape
        for name, shape in full_model().parameters().items()
        if name.startswith(prefix)
    }
    names = sorted(shapes)
    for number, chosen in enumerate((names[:150], names[150:]), 1):
        state = stand_in({name: shapes[name] for name in chosen}, torch.float16)
        write(folder / f"pytorch_model-0000{number}-of-00002.bin", state)


def doctor(run: Run, folder: Path, name: str, *options: str) -> tuple[int, str, str]:
    """Checks a shipped configuration with `ckpt/` being another folder."""
    text = resource(name).read_text("utf-8").replace("ckpt/", f"{folder}/")
    path = folder / Path(name).name
    path.write_text(text, "utf-8")
    return run("doctor", path, *(["--options", *options] if options else []))


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("eval_configs/video_llama_eval_withaudio.yaml", 8_593_500_032),
        ("eval_configs/video_llama_eval_only_vl.yaml", 7_851_579_264),
    ],
)
def test_the_released_files_fit(run: Run, released: Path, name: str, parameters: int) -> None:
    status, output, errors = doctor(run, released, name)
    assert (status, errors) == (0, "")
    assert f"{parameters:,}" in output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["model.ckpt={folder}/AL_LLaMA_2_7B_Finetuned.pth"], "no file has the weights of video"),
        (["model.vit_ckpt={folder}/blip2_pretrained_flant5xxl.pth"], "model.vit_ckpt: "),
        (["model.num_video_query_token=16"], "set model.num_video_query_token to 32, as in the"),
        (["model.max_frame_pos=16"], "set model.max_frame_pos to 32, as in the file"),
        (["model.model_type=pretrain_vicuna"], "set model.model_type=pretrain_llama_v2"),
        (["model.ckpt=null"], "no file has the weights of video_branch; give it in model.ckpt"),
    ],
)
def test_what_does_not_fit_is_told(
    run: Run, released: Path, options: list[str], message: str
) -> None:
    status, _, errors = doctor(
        run,
        released,
        "eval_configs/video_llama_eval_withaudio.yaml",
        *(option.format(folder=released) for option in options),
    )
    assert status == 1
    assert message in errors.splitlines()[0]


def test_a_shard_of_another_size_is_told(run: Run, released: Path, tmp_path: Path) -> None:
    write_llama(tmp_path / "llama")
    config = tmp_path / "llama/config.json"
    values: dict[str, Any] = json.loads(config.read_text("utf-8"))
    config.write_text(json.dumps({**values, "vocab_size": 32001}), "utf-8")
    option = f"model.llama_model={tmp_path / 'llama'}"
    status, _, errors = doctor(run, released, "eval_configs/video_llama_eval_only_vl.yaml", option)
    assert status == 1
    assert "lm_head.weight has shape [32000, 4096]" in errors
    assert "config.json asks for [32001, 4096]" in errors
    config.write_text(json.dumps({**values, "num_hidden_layers": 33}), "utf-8")
    _, _, errors = doctor(run, released, "eval_configs/video_llama_eval_only_vl.yaml", option)
    assert "llama lacks 9 tensors, first model.layers.32" in errors
