"""Values of a LLaMA folder's config.json that no model can have: one error that names the file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.golden_model import golden_settings, write_llama_folder
from video_llama.models.language_model import build_language_model, read_config
from video_llama.types import ConfigError

WRONG: list[dict[str, Any]] = [
    *({"num_key_value_heads": value} for value in ("a", 0, 3)),
    *({"vocab_size": value} for value in (1, 10**12)),
    *({"hidden_act": value} for value in (3, "nope")),
    *({"head_dim": value} for value in (7, 0)),
    *({"rms_norm_eps": "a"}, {"eos_token_id": [1, "a"]}, {"rope_scaling": "x"}),
    *({"pad_token_id": 10**9}, {"num_hidden_layers": 10**8}, {"max_position_embeddings": -1}),
]


@pytest.mark.parametrize("values", WRONG, ids=str)
def test_an_impossible_value_is_told_with_its_file(values: dict[str, Any], tmp_path: Path) -> None:
    folder = write_llama_folder(tmp_path / "llama", **values)
    with pytest.raises(ConfigError, match=r"model\.llama_model: .*llama/config\.json "):
        read_config(folder)


def test_json_that_is_nested_too_deeply_is_refused(tmp_path: Path) -> None:
    folder = write_llama_folder(tmp_path / "llama")
    (folder / "config.json").write_text("[" * 200_000, "utf-8")
    with pytest.raises(ConfigError, match=r"config\.json is not a JSON object"):
        read_config(folder)


def test_nf4_needs_widths_of_whole_blocks(tmp_path: Path) -> None:
    folder = write_llama_folder(tmp_path / "llama", intermediate_size=352)
    settings = golden_settings(llama_model=str(folder), quantization="nf4")
    with pytest.raises(ConfigError, match=r"multiples of 64, but .* has intermediate_size 352"):
        build_language_model(settings, torch.device("meta"))
