"""LoRA on the language model: kept as PEFT keeps it, and only with its own branch."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import LlamaForCausalLM

from tests.golden_model import build_golden, golden_settings
from video_llama.common.io import default_config_path, package_file
from video_llama.config.build import build_model
from video_llama.config.load import load_config
from video_llama.models.lora import (
    adapter_hash,
    lora_parameters,
    merge_adapter,
    read_adapter,
    save_adapter,
)
from video_llama.models.video_llama import VideoLlama
from video_llama.types import ConfigError, WeightsError

LLAMA = package_file("presets/tiny/llama")


def tiny(*options: str) -> VideoLlama:
    return build_model(load_config(default_config_path(), ["run.device=cpu", *options]))


def fill(model: VideoLlama) -> None:
    """An adapter that changes what the LLM says; a fresh one changes nothing."""
    generator = torch.Generator().manual_seed(0)
    for _, parameter in lora_parameters(model.language_model):
        parameter.data = 0.2 * torch.randn(parameter.shape, generator=generator)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[VideoLlama, Path]:
    model = tiny("model.lora_r=4", "model.ckpt=null", "model.ckpt_2=null", "model.random_init=true")
    fill(model)
    folder = tmp_path_factory.mktemp("lora") / "adapter"
    save_adapter(model.language_model, model.settings, folder)
    return model, folder


def logits(llm: Any) -> torch.Tensor:
    ids = torch.tensor([[1, 5, 9, 33, 70]])
    with torch.no_grad():
        found: torch.Tensor = llm.eval()(input_ids=ids).logits
    return found


def test_without_rank_nothing_is_there() -> None:
    plain = build_golden()
    assert list(lora_parameters(plain.language_model)) == []
    assert [n for n, _ in plain.named_parameters() if "lora" in n or "base_layer" in n] == []


def test_a_fresh_adapter_changes_nothing_and_trains() -> None:
    plain, with_adapter = build_golden(), build_golden(lora_r=4)
    assert torch.equal(logits(plain.language_model), logits(with_adapter.language_model))
    trains = dict(lora_parameters(with_adapter.language_model))
    layers = with_adapter.language_model.config.num_hidden_layers
    assert len(trains) == 2 * 2 * layers  # A and B of q_proj and v_proj
    assert all(p.requires_grad and p.dtype == torch.float32 for p in trains.values())
    others = [p for n, p in with_adapter.language_model.named_parameters() if ".lora_" not in n]
    assert not any(p.requires_grad for p in others)


def test_the_seed_gives_the_same_adapter() -> None:
    first, second = (dict(lora_parameters(build_golden(lora_r=2).language_model)) for _ in "ab")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_an_adapter_of_a_chat_does_not_train(trained: tuple[VideoLlama, Path]) -> None:
    model = build_golden(None)
    assert model.settings.trained_branch is None
    loaded = tiny(
        f"model.lora_ckpt={trained[1]}",
        "model.ckpt=null",
        "model.ckpt_2=null",
        "model.random_init=true",
    )
    assert not any(p.requires_grad for _, p in lora_parameters(loaded.language_model))


def test_what_was_saved_comes_back(trained: tuple[VideoLlama, Path]) -> None:
    model, folder = trained
    ours = {name: p.detach() for name, p in lora_parameters(model.language_model)}
    back = read_adapter(folder)
    assert ours.keys() == back.keys()
    assert all(torch.equal(ours[name], back[name]) for name in ours)


def test_peft_loads_it_beside_a_plain_llama(trained: tuple[VideoLlama, Path]) -> None:
    model, folder = trained
    plain = LlamaForCausalLM.from_pretrained(LLAMA, dtype=torch.float32)
    before = logits(plain)
    theirs = PeftModel.from_pretrained(plain, folder)
    assert not torch.allclose(before, logits(model.language_model), atol=1e-3)
    assert torch.allclose(logits(theirs), logits(model.language_model), atol=1e-5)


def test_merged_is_the_same_model(trained: tuple[VideoLlama, Path], tmp_path: Path) -> None:
    model, folder = trained
    merge_adapter(LLAMA, folder, tmp_path / "merged")
    merged = LlamaForCausalLM.from_pretrained(tmp_path / "merged", dtype=torch.float32)
    assert torch.allclose(logits(merged), logits(model.language_model), atol=1e-5)
    assert (tmp_path / "merged/tokenizer.model").read_bytes() == (
        LLAMA / "tokenizer.model"
    ).read_bytes()
    names = load_file(tmp_path / "merged/model.safetensors")
    assert not any("lora" in name or "base_layer" in name for name in names)
    with pytest.raises(ConfigError, match="exists; give another folder"):
        merge_adapter(LLAMA, folder, tmp_path / "merged")


def test_the_folder_is_the_same_each_time(trained: tuple[VideoLlama, Path], tmp_path: Path) -> None:
    model, folder = trained
    assert save_adapter(model.language_model, model.settings, tmp_path) == adapter_hash(folder)
    for path in folder.iterdir():
        assert path.read_bytes() == (tmp_path / path.name).read_bytes()
        assert str(package_file("presets")) not in path.read_text("latin-1")


@pytest.mark.parametrize("name", ["lm_head", "visual_encoder", "embed_tokens", "qkv"])
def test_other_layers_than_the_decoders_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"lora_target_modules: {name} given, some of q_proj"):
        golden_settings(lora_r=2, lora_target_modules=[name])


def test_another_rank_is_refused(trained: tuple[VideoLlama, Path]) -> None:
    with pytest.raises(ConfigError, match=r"lora_r: 8 given, but the adapter .* has 4"):
        tiny(
            "model.lora_r=8",
            f"model.lora_ckpt={trained[1]}",
            "model.ckpt=null",
            "model.ckpt_2=null",
            "model.random_init=true",
        )


def test_an_adapter_of_another_llm_is_refused(trained: tuple[VideoLlama, Path]) -> None:
    with pytest.raises(WeightsError, match=r"does not fit the language model: \d+ tensors differ"):
        build_golden(lora_ckpt=str(trained[1]))


def test_a_folder_that_is_no_adapter_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"lora_ckpt: .* is no adapter .*adapter_config.json"):
        build_golden(lora_ckpt=str(tmp_path))


def test_a_damaged_adapter_is_refused(trained: tuple[VideoLlama, Path], tmp_path: Path) -> None:
    copy = tmp_path / "adapter"
    shutil.copytree(trained[1], copy)
    path = copy / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(WeightsError, match="is not a complete adapter"):
        read_adapter(copy)


def test_without_peft_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=r"pip install 'video-llama\[lora\]'"):
        build_golden(lora_r=2)


def test_the_scale_is_in_the_configuration(trained: tuple[VideoLlama, Path]) -> None:
    values = json.loads((trained[1] / "adapter_config.json").read_text("utf-8"))
    assert (values["r"], values["lora_alpha"], values["peft_type"]) == (4, 16, "LORA")
    assert values["target_modules"] == ["q_proj", "v_proj"]


def test_it_trains_beside_a_quantised_llm() -> None:
    options = ("model.quantization=nf4", "model.lora_r=2", "model.frozen_video_Qformer=false")
    model = tiny(*options, "model.ckpt=null", "model.ckpt_2=null", "model.random_init=true")
    fill(model)
    ids = torch.tensor([[1, 5, 9, 33, 70]])
    loss = model.language_model(input_ids=ids, labels=ids).loss
    loss.backward()
    gradients = [p.grad for _, p in lora_parameters(model.language_model)]
    assert all(g is not None and float(g.abs().sum()) > 0 for g in gradients)
    kinds = {type(m).__name__ for m in model.language_model.modules()}
    assert "Linear4bit" in kinds
