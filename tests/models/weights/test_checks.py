from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.golden_model import write_llama_folder
from video_llama.models.weights.checks import llama_values
from video_llama.models.weights.files import open_weights
from video_llama.types import ConfigError, WeightsError


def test_a_folder_is_refused_with_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "folder.pth").mkdir()
    (tmp_path / "folder.pth" / "weights.bin").touch()
    with pytest.raises(WeightsError, match=r"is a folder.*weights\.bin"):
        open_weights(tmp_path / "folder.pth")


def test_a_missing_file_is_told_with_its_neighbours(tmp_path: Path) -> None:
    (tmp_path / "VL_Finetuned.pth").touch()
    with pytest.raises(WeightsError, match=r"does not exist; .* holds: VL_Finetuned\.pth"):
        open_weights(tmp_path / "VL_Fintuned.pth")
    with pytest.raises(WeightsError, match=r"nor does its folder"):
        open_weights(tmp_path / "ckpt" / "VL_Finetuned.pth")


def test_a_pipe_and_a_loop_of_links_are_told(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.pth")
    (tmp_path / "loop.pth").symlink_to(tmp_path / "loop.pth")
    for name, message in (("pipe", "a device or a pipe"), ("loop", "symbolic links")):
        with pytest.raises(WeightsError, match=message):
            open_weights(tmp_path / f"{name}.pth")


def quantised(folder: Path, file: str, values: object) -> Path:
    """A LLaMA folder that a quantiser has written."""
    write_llama_folder(folder)
    if file == "config.json":
        config = json.loads((folder / file).read_text("utf-8"))
        values = {**config, "quantization_config": values}
    (folder / file).write_text(json.dumps(values), "utf-8")
    return folder


@pytest.mark.parametrize(
    ("file", "values", "method"),
    [
        ("config.json", {"quant_method": "gptq", "bits": 4}, "gptq"),
        ("config.json", {"quant_method": "awq", "version": "gemm"}, "awq"),
        ("config.json", {"quant_method": "compressed-tensors"}, "compressed-tensors"),
        ("config.json", {"bits": 4}, "an unknown method"),
        ("config.json", "fp8", "an unknown method"),
        ("quantize_config.json", {"bits": 4}, "gptq"),
        ("quant_config.json", {"w_bit": 4}, "awq"),
    ],
)
def test_a_folder_that_was_saved_quantised_is_refused(
    file: str, values: object, method: str, tmp_path: Path
) -> None:
    folder = quantised(tmp_path / "llama", file, values)
    message = rf"model\.llama_model: {folder}/{file} says that .* \({method}\), .*quantization=int8"
    with pytest.raises(ConfigError, match=message) as error:
        llama_values(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("values", [None, {}, {"quant_method": "bitsandbytes"}])
def test_plain_folders_and_those_of_bitsandbytes_are_read(values: object, tmp_path: Path) -> None:
    folder = quantised(tmp_path / "llama", "config.json", values)
    assert llama_values(folder)["hidden_size"] > 0
