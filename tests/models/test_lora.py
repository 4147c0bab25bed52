"""LoRA on the language model: kept as PEFT keeps it, and only with its own branch."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from tests.golden_model import build_golden, golden_settings
from video_llama.apps.hf.export import export_hf
from video_llama.common.io import default_config_path, package_file
from video_llama.config.build import build_model
from video_llama.config.load import load_config
from video_llama.models.llama_training import recompute_activations
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


RANDOM = ("model.ckpt=null", "model.ckpt_2=null", "model.random_init=true")


def changed(folder: Path, copy: Path, **values: Any) -> Path:
    """A copy of an adapter's folder with other values in its configuration."""
    shutil.copytree(folder, copy)
    config = json.loads((copy / "adapter_config.json").read_text("utf-8"))
    (copy / "adapter_config.json").write_text(json.dumps(config | values), "utf-8")
    return copy


def rewritten(folder: Path, copy: Path, change: Callable[[Any], Any]) -> Path:
    """A copy of an adapter's folder with other tensors."""
    shutil.copytree(folder, copy)
    path = copy / "adapter_model.safetensors"
    save_file(change(load_file(path)), path, {"format": "pt"})
    return copy


def gradients(*options: str, recomputed: bool) -> list[torch.Tensor]:
    model = tiny(*options, "model.lora_r=4", "model.frozen_video_Qformer=false", *RANDOM)
    fill(model)
    if recomputed:
        recompute_activations(model.language_model)
    model.train()
    generator = torch.Generator().manual_seed(1)
    width = model.language_model.config.hidden_size
    embeddings = torch.randn(2, 6, width, generator=generator)
    torch.manual_seed(3)
    labels = torch.arange(12).view(2, 6)
    model.language_model(inputs_embeds=embeddings, labels=labels).loss.backward()
    found = [p.grad for _, p in lora_parameters(model.language_model)]
    return [gradient for gradient in found if gradient is not None]


def test_recomputed_layers_draw_the_dropout_of_the_adapter_again() -> None:
    expected = gradients("model.lora_dropout=0.5", recomputed=False)
    found = gradients("model.lora_dropout=0.5", recomputed=True)
    assert len(expected) == len(found) > 0
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    other = gradients("model.lora_dropout=0", recomputed=False)
    assert not all(torch.equal(a, b) for a, b in zip(other, expected, strict=True))


def test_a_merged_llama_takes_no_adapter(trained: tuple[VideoLlama, Path], tmp_path: Path) -> None:
    merge_adapter(LLAMA, trained[1], tmp_path / "merged")
    merged = f"model.llama_model={tmp_path / 'merged'}"
    with pytest.raises(ConfigError, match="has an adapter merged into it"):
        tiny(merged, f"model.lora_ckpt={trained[1]}", *RANDOM)
    with pytest.raises(ConfigError, match="has an adapter merged into it"):
        merge_adapter(tmp_path / "merged", trained[1], tmp_path / "twice")
    assert {path.name for path in tmp_path.iterdir()} == {"merged"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("model.lora_alpha=64",), r"model\.lora_alpha: 64 given, but the adapter .* has 16"),
        (("model.lora_target_modules=[k_proj]",), r"lora_target_modules: \['k_proj'\] given"),
    ],
)
def test_an_adapter_goes_on_with_the_scale_and_layers_that_it_has(
    options: tuple[str, ...], message: str, trained: tuple[VideoLlama, Path]
) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny("model.lora_r=4", f"model.lora_ckpt={trained[1]}", *options, *RANDOM)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"use_dora": True}, "kind LORA use_dora, plain LoRA expected"),
        ({"bias": "all"}, "kind LORA bias, plain LoRA expected"),
        ({"modules_to_save": ["lm_head"]}, "kind LORA modules_to_save"),
        ({"target_modules": ["q_proj", "lm_head"]}, r"changes \['q_proj', 'lm_head'\], some of"),
        ({"target_modules": "all-linear"}, "changes 'all-linear', some of q_proj"),
    ],
)
def test_an_adapter_that_is_more_than_lora_is_refused(
    values: dict[str, Any], message: str, trained: tuple[VideoLlama, Path], tmp_path: Path
) -> None:
    folder = changed(trained[1], tmp_path / "adapter", **values)
    with pytest.raises(ConfigError, match=rf"model\.lora_ckpt: .*{message}"):
        tiny(f"model.lora_ckpt={folder}", *RANDOM)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: dict(list(t.items())[2:]), r"does not fit the language model: 2 tensors"),
        (lambda t: {n: v * torch.nan for n, v in t.items()}, "values that are not finite"),
    ],
)
def test_tensors_that_are_missing_or_not_finite_are_neither_loaded_nor_merged(
    change: Callable[[Any], Any], message: str, trained: tuple[VideoLlama, Path], tmp_path: Path
) -> None:
    folder = rewritten(trained[1], tmp_path / "adapter", change)
    with pytest.raises(WeightsError, match=message):
        tiny(f"model.lora_ckpt={folder}", *RANDOM)
    with pytest.raises(WeightsError, match=message):
        merge_adapter(LLAMA, folder, tmp_path / "merged")
    assert {path.name for path in tmp_path.iterdir()} == {"adapter"}


def test_a_folder_without_tensors_says_so(trained: tuple[VideoLlama, Path], tmp_path: Path) -> None:
    folder = changed(trained[1], tmp_path / "adapter")
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(WeightsError, match=r"has no adapter_model\.safetensors"):
        tiny(f"model.lora_ckpt={folder}", *RANDOM)


def test_an_incomplete_llama_is_not_merged(
    trained: tuple[VideoLlama, Path], tmp_path: Path
) -> None:
    shutil.copytree(LLAMA, tmp_path / "llama")
    path = tmp_path / "llama/model.safetensors"
    weights = load_file(path)
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, path, {"format": "pt"})
    with pytest.raises(WeightsError, match="lacks 1 tensors"):
        merge_adapter(tmp_path / "llama", trained[1], tmp_path / "merged")
    assert not (tmp_path / "merged").exists()


def test_an_adapter_is_merged_before_it_is_exported(
    trained: tuple[VideoLlama, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"merge the adapter first \(`video-llama merge`\)"):
        export_hf(trained[0], tmp_path / "exported")
    assert list(tmp_path.iterdir()) == []
