"""The LLM's folder: loading, placing, quantising, and errors that say what is wrong with it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import LlamaForCausalLM

from tests.golden_model import build_golden, golden_model, golden_settings, write_llama_folder
from video_llama.models import language_model as module
from video_llama.models.language_model import (
    build_language_model,
    causal_loss,
    linear_cross_entropy,
    read_config,
)
from video_llama.types import CaptionBatch, ConfigError, WeightsError

CPU = torch.device("cpu")


def state() -> dict[str, torch.Tensor]:
    """The golden LLM's weights under the names of a LLaMA folder, with the buffers of old ones."""
    weights = {
        name: p.detach().clone() for name, p in golden_model().language_model.named_parameters()
    }
    frequencies = golden_model().language_model.model.rotary_emb.inv_freq
    for layer in range(2):
        weights[f"model.layers.{layer}.self_attn.rotary_emb.inv_freq"] = frequencies.clone()
    return weights


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A complete LLaMA folder, with the generation settings of the released ones."""
    made = write_llama_folder(tmp_path / "llama")
    save_file(state(), made / "model.safetensors", {"format": "pt"})
    sampling = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "max_length": 4096}
    (made / "generation_config.json").write_text(json.dumps(sampling), "utf-8")
    return made


def load(folder: Path, **changes: Any) -> LlamaForCausalLM:
    return build_language_model(golden_settings(llama_model=str(folder), **changes), CPU)


def greedy(model: Any) -> list[int]:
    embeddings = model.get_input_embeddings()(torch.tensor([[1, 20, 30, 40]]))
    ids: list[int] = model.generate(inputs_embeds=embeddings, max_new_tokens=8)[0].tolist()
    return ids


def test_a_folder_gives_the_model_that_the_whole_checkpoint_gives(folder: Path) -> None:
    model, expected = load(folder), golden_model().language_model
    loaded = dict(model.named_parameters())
    assert all(torch.equal(loaded[name], p) for name, p in expected.named_parameters())
    assert greedy(model) == greedy(expected)
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not model.training


def test_sampling_of_the_folder_does_not_change_greedy_answers(folder: Path) -> None:
    config = load(folder).generation_config
    assert (config.do_sample, config.temperature, config.top_p) == (False, None, None)


def test_shards_of_pickles_are_read(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"pytorch_model-1.bin": names[::2], "pytorch_model-2.bin": names[1::2]}
    for shard, held in shards.items():
        torch.save({name: weights[name] for name in held}, folder / shard)
    index = {"weight_map": {name: shard for shard, held in shards.items() for name in held}}
    index["metadata"] = {"total_size": "1"}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index), "utf-8")
    assert greedy(load(folder)) == greedy(golden_model().language_model)


def test_precision_of_a_folder(folder: Path) -> None:
    model = load(folder, precision="bf16")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.bfloat16}
    assert model.model.rotary_emb.inv_freq.dtype is torch.float32


def remove_tensor(folder: Path) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def change_config(folder: Path, **values: Any) -> None:
    config = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps({**config, **values}), "utf-8")


def truncate(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1000])


def change_values(folder: Path, change: Callable[[torch.Tensor], torch.Tensor]) -> None:
    weights = load_file(folder / "model.safetensors")
    matrices = {name: change(tensor) for name, tensor in weights.items() if tensor.ndim > 1}
    save_file({**weights, **matrices}, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize(
    ("damage", "error", "message"),
    [
        (
            lambda f: change_values(f, lambda t: t.index_fill(0, torch.tensor(3), torch.nan)),
            WeightsError,
            r"llama_model\..* holds values that are not finite",
        ),
        (
            lambda f: change_values(f, torch.zeros_like),
            WeightsError,
            r"all weights of language_model are zero",
        ),
        (
            lambda f: change_config(f, quantization_config={"quant_method": "gptq"}),
            ConfigError,
            r"quantised \(gptq\), plain ones are needed",
        ),
        (remove_tensor, WeightsError, r"lacks 1 tensors .* model\.layers\.1\.mlp\.up_proj"),
        (truncate, WeightsError, r"does not load"),
        (lambda f: change_config(f, intermediate_size=96), WeightsError, r"does not load"),
        (lambda f: change_config(f, num_hidden_layers=3), WeightsError, r"lacks 9 tensors"),
        (lambda f: change_config(f, model_type="mistral"), ConfigError, r"a 'mistral' model"),
        (
            lambda f: change_config(f, hidden_size="big"),
            ConfigError,
            r"has hidden_size 'big'",
        ),
        (
            lambda f: change_config(f, num_attention_heads=5),
            ConfigError,
            r"64, a multiple of .*\(5\)",
        ),
        (lambda f: (f / "config.json").unlink(), ConfigError, r"no .*config\.json; give"),
        (lambda f: (f / "config.json").write_text("{", "utf-8"), ConfigError, "not a JSON"),
        (lambda f: (f / "config.json").write_text("[]", "utf-8"), ConfigError, "not a JSON"),
    ],
)
def test_a_damaged_folder_is_named(
    damage: Callable[[Path], Any], error: type[Exception], message: str, folder: Path
) -> None:
    damage(folder)
    with pytest.raises(error, match=rf"(?s)model\.llama_model: .*{message}") as raised:
        load(folder)
    assert str(folder) in str(raised.value)


def test_a_missing_folder_is_an_error_except_for_shapes(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"give the folder of a LLaMA in Hugging Face form"):
        read_config(tmp_path / "llama-2-7b")
    assert read_config(tmp_path / "llama-2-7b", assume_released=True).hidden_size == 4096
    assert read_config(tmp_path / "Vicuna-13B", assume_released=True).hidden_size == 5120
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="is a file; give the folder"):
        read_config(tmp_path / "file")


def test_the_llm_may_be_spread_over_devices(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    placements = []
    original = LlamaForCausalLM.from_pretrained

    def spy(*args: Any, device_map: Any, **kwargs: Any) -> Any:
        placements.append(device_map)
        return original(*args, device_map="cpu", **kwargs)

    monkeypatch.setattr(LlamaForCausalLM, "from_pretrained", spy)
    for name in ("single", "auto"):
        load(folder, llm_device_map=name)
    assert placements == [{"": CPU}, "auto"]


@pytest.fixture
def wide_folder(tmp_path: Path) -> Path:
    """An LLM whose widths are multiples of bitsandbytes' blocks of 64, as those of LLaMA are."""
    made = write_llama_folder(tmp_path / "wide", intermediate_size=192)
    torch.manual_seed(0)
    fresh = LlamaForCausalLM(read_config(made)).state_dict()
    save_file(fresh, made / "model.safetensors", {"format": "pt"})
    return made


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_quantised_models_load_and_answer_on_a_cpu(quantization: str, wide_folder: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra 'quant' is not installed")
    model, exact = load(wide_folder, quantization=quantization), load(wide_folder)
    layer = model.model.layers[0].self_attn.q_proj
    assert type(layer).__name__ == {"int8": "Linear8bitLt", "nf4": "Linear4bit"}[quantization]
    assert layer.weight.element_size() == 1
    embeddings = torch.randn(1, 12, 64, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        hidden, expected = (m.model(inputs_embeds=embeddings)[0].float() for m in (model, exact))
    assert F.cosine_similarity(hidden, expected, dim=-1).min() > 0.95
    assert len(greedy(model)) == 8


@pytest.mark.parametrize("quantization", ["int8", "nf4"])
def test_a_branch_trains_through_a_quantised_model(quantization: str, wide_folder: Path) -> None:
    pytest.importorskip("bitsandbytes", reason="the extra 'quant' is not installed")
    files = {"llama_model": str(wide_folder), "ckpt": None, "random_init": True}
    model = build_golden("video", quantization=quantization, **files).train()
    clips = torch.randn(2, 3, 2, 56, 56, generator=torch.Generator().manual_seed(0))
    model(CaptionBatch(pixel_values=clips, captions=["a red car", "a dog"])).loss.backward()
    gradient = model.video_branch.proj.weight.grad
    assert gradient is not None
    assert gradient.isfinite().all()
    assert gradient.abs().max() > 0


def test_quantising_without_its_package_says_what_to_install(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"int8 needs bitsandbytes; pip install"):
        load(folder, quantization="int8")


def test_loss_is_that_of_transformers() -> None:
    model = golden_model().language_model
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(2, 9, 64, generator=generator)
    labels = torch.randint(3, 500, (2, 9), generator=generator)
    labels[:, :3] = labels[1, 6:] = -100
    mask = torch.ones(2, 9, dtype=torch.long)
    mask[1, 6:] = 0
    expected = model(inputs_embeds=embeddings, attention_mask=mask, labels=labels).loss
    loss, num_tokens = causal_loss(model, embeddings, labels, mask)
    assert torch.allclose(loss, expected, atol=1e-6)
    assert num_tokens == 9


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


TRANSPOSE = torch.ops.aten.t.default  # of the weights, which makes nothing
ROWS = torch.tensor([0, 3, 4, 7, 8, 9, 11])


def inputs(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(12, 6, generator=generator).to(dtype).requires_grad_()
    weight = torch.randn(50, 6, generator=generator).to(dtype)
    return hidden, weight, torch.randint(0, 50, (len(ROWS),), generator=generator)


def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(F.linear(hidden[ROWS], weight).float(), targets)


@pytest.mark.parametrize("rows_per_chunk", [1, 3, 100])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2)])
def test_loss_and_gradient_are_those_of_all_logits(
    rows_per_chunk: int,
    dtype: torch.dtype,
    tolerance: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 50 * rows_per_chunk)
    hidden, weight, targets = inputs(dtype)
    expected = plain(hidden, weight, targets)
    (gradient,) = torch.autograd.grad(3 * expected, hidden)
    found = linear_cross_entropy(hidden, weight, targets, ROWS)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=tolerance, rtol=0)
    (of_hidden,) = torch.autograd.grad(3 * found, hidden)
    torch.testing.assert_close(of_hidden, gradient, atol=tolerance, rtol=0)
    assert gradient.abs().max() > 0.1


def test_an_output_layer_that_trains_has_its_gradient() -> None:
    hidden, weight, targets = inputs(torch.float32)
    weight.requires_grad_()
    (expected,) = torch.autograd.grad(plain(hidden, weight, targets), weight)
    (found,) = torch.autograd.grad(linear_cross_entropy(hidden, weight, targets, ROWS), weight)
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_nothing_is_kept_for_a_gradient_that_nobody_wants() -> None:
    hidden, weight, targets = inputs(torch.float32)
    with torch.no_grad():
        assert not linear_cross_entropy(hidden, weight, targets, ROWS).requires_grad


class MadeLogits(TorchDispatchMode):
    """Notes how many rows of logits there are in any tensor that is made."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[int] = []

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        if isinstance(made, Tensor) and made.shape[-1:] == (50,) and function is not TRANSPOSE:
            self.rows.append(len(made))
        return made


def test_no_more_than_a_chunk_of_logits_is_made(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK_BYTES", 4 * 50 * 2)
    hidden, weight, targets = inputs(torch.float32)
    with MadeLogits() as made:
        linear_cross_entropy(hidden, weight, targets, ROWS).backward()
    assert set(made.rows) == {1, 2}
    with MadeLogits() as made:
        plain(hidden, weight, targets).backward()
    assert max(made.rows) == len(ROWS)
