"""What a file fills: odd tensors and values are refused, and no second copy is ever held."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from tests.golden_model import build_golden, golden, golden_settings, weight, write_llama_folder
from tests.reference import ROOT
from video_llama.models.build import build_video_llama
from video_llama.models.settings import ImageBindSettings, QFormerSettings, VitSettings
from video_llama.models.weights.load import targets_of
from video_llama.models.weights.report import ValueCheck
from video_llama.types import WeightsError


def part(prefix: str) -> dict[str, Tensor]:
    """The weights of a part of the golden model, without the prefix."""
    shapes = golden().parameters
    return {n.removeprefix(prefix): weight(n, shapes[n]) for n in shapes if n.startswith(prefix)}


def write(folder: Path, state: dict[str, Tensor]) -> str:
    torch.save({"model": state}, folder / "file.pth")
    return str(folder / "file.pth")


@pytest.mark.parametrize(
    ("name", "bad", "message"),
    [
        (
            "llama_proj.weight",
            torch.tensor(1.0),
            r"llama_proj\.weight has shape \[\] .* of another kind",
        ),
        (
            "llama_proj.bias",
            torch.ones(64).int(),
            r"llama_proj\.bias is of type torch\.int32, one of",
        ),
        ("llama_proj.bias", torch.ones(64, dtype=torch.cfloat), r"is of type torch\.complex64"),
        ("llama_proj.bias", torch.full((64,), torch.nan), r"bias holds values that are not finite"),
        ("llama_proj.bias", torch.full((64,), torch.inf), r"bias holds values that are not finite"),
    ],
)
def test_a_tensor_that_can_be_no_weight_is_refused(
    tmp_path: Path, name: str, bad: Tensor, message: str
) -> None:
    state = {f"llama_proj.{key}": value for key, value in part("llama_proj.").items()} | {name: bad}
    with pytest.raises(WeightsError, match=rf"model\.llama_proj_model: .*{message}"):
        build_golden(None, llama_proj_model=write(tmp_path, state))


@pytest.mark.parametrize(
    ("key", "prefix", "name"),
    [
        ("vit_ckpt", "visual_encoder.", "blocks.1.mlp.fc1.weight"),
        ("imagebind_ckpt_path", "audio_encoder.", "modality_heads.audio.2.weight"),
        ("ckpt", "", "llama_model.model.layers.0.mlp.up_proj.weight"),
    ],
)
@pytest.mark.parametrize("value", [torch.nan, -torch.inf])
def test_one_value_that_is_not_finite_is_found_in_every_part(
    tmp_path: Path, key: str, prefix: str, name: str, value: float
) -> None:
    state = {key: tensor.clone() for key, tensor in part(prefix).items()}
    state[name].view(-1)[17] = value
    with pytest.raises(
        WeightsError, match=rf"model\.{key}: .*{name} holds .* is damaged: download"
    ):
        build_golden(None, **{key: write(tmp_path, state)})


@pytest.mark.parametrize(
    ("key", "prefix", "group"),
    [
        ("vit_ckpt", "visual_encoder.", "vision_encoder"),
        ("llama_proj_model", "", "video_proj"),
        ("imagebind_ckpt_path", "audio_encoder.", "audio_encoder"),
    ],
)
def test_a_part_without_any_weight_but_zero_is_refused(
    tmp_path: Path, key: str, prefix: str, group: str
) -> None:
    state = part(prefix)
    if not prefix:
        state = {name: tensor for name, tensor in state.items() if name.startswith("llama_proj.")}
    state = {n: t if t.ndim < 2 else torch.zeros_like(t) for n, t in state.items()}
    with pytest.raises(WeightsError, match=rf"model\.{key}: .*: all weights of {group} are zero;"):
        build_golden(None, **{key: write(tmp_path, state)})


@pytest.mark.parametrize("place", [0, 150_000, 299_999])
def test_trained_weights_are_read_whole_and_frozen_ones_at_both_ends(place: int) -> None:
    values = torch.ones(3, 100_000)
    values.view(-1)[place] = torch.inf
    with pytest.raises(WeightsError, match=r"ckpt: llama_proj\.weight holds values"):
        ValueCheck("ckpt").add("llama_proj.weight", values)
    frozen = ValueCheck("ckpt")
    if place == 150_000:  # in the middle
        frozen.add("visual_encoder.pos_embed", values)
        frozen.finish()
        return
    with pytest.raises(WeightsError, match=r"visual_encoder\.pos_embed holds values"):
        frozen.add("visual_encoder.pos_embed", values)


def test_single_matrices_of_zeros_are_weights(tmp_path: Path) -> None:
    state = part("visual_encoder.")
    state["blocks.0.mlp.fc2.weight"] = torch.zeros_like(state["blocks.0.mlp.fc2.weight"])
    build_golden(None, vit_ckpt=write(tmp_path, state))


@pytest.mark.parametrize("shape", [(), (5,), (1, 0, 32), (1, 1, 32)])
def test_positions_of_an_impossible_shape_are_refused(
    tmp_path: Path, shape: tuple[int, ...]
) -> None:
    state = {**part("visual_encoder."), "pos_embed": torch.ones(shape)}
    with pytest.raises(WeightsError, match=r"pos_embed has shape"):
        build_golden(None, vit_ckpt=write(tmp_path, state))


needs_proc = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

LARGEST = 1.15
"""Peak over the size of the weights."""
SLACK = 40e6
"""Bytes for everything else that a build needs: code, tokenizer, buffers."""

SIZES: dict[str, Any] = {
    "vit_config": VitSettings(embed_dim=704, depth=4, num_heads=8),
    "qformer_config": QFormerSettings(
        hidden_size=384, num_hidden_layers=4, num_attention_heads=6, intermediate_size=1536
    ),
    "imagebind_config": ImageBindSettings(
        vision_embed_dim=512,
        vision_num_blocks=4,
        vision_num_heads=8,
        audio_embed_dim=384,
        audio_num_blocks=4,
        audio_num_heads=6,
    ),
}
LLM = {
    "hidden_size": 768,
    "intermediate_size": 2048,
    "num_hidden_layers": 8,
    "num_attention_heads": 8,
}
MEASURE = """
import json, os, sys, threading
from pathlib import Path

import torch
import tests.models.weights.test_load as here
from tests.golden_model import golden_settings
from video_llama.models.build import build_video_llama

def status(key):
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(key))
    return int(line.split()[1]) * 1024

def size(parameters, but=None):
    return sum(p.numel() * p.element_size() for p in parameters if p.dtype is not but)

def measure(changes):
    settings = golden_settings(None, **here.SIZES, **changes)
    resident, anonymous = status("VmRSS"), status("RssAnon")
    peak, done = [0], threading.Event()

    def watch():
        while not done.wait(0.001):
            peak[0] = max(peak[0], status("RssAnon"))

    thread = threading.Thread(target=watch)
    thread.start()
    model = build_video_llama(settings, device="cpu", seed=0)
    for parameter in model.parameters():
        parameter.sum()  # pages of a mapped file count once they are read
    done.set()
    thread.join()
    llm = [*model.language_model.parameters()]
    rest = [p for name, p in model.named_parameters() if not name.startswith("language_model.")]
    print(json.dumps({
        "weights": size(llm + rest),
        "converted": size(llm, but=torch.bfloat16) + size(rest, but=torch.float32),
        "resident": status("VmHWM") - resident,
        "anonymous": peak[0] - anonymous,
    }), flush=True)

for changes in json.loads(sys.argv[1]):
    child = os.fork()
    if not child:
        measure(changes)
        os._exit(0)
    os.waitpid(child, 0)
"""
"""Prints a line for each set of settings, measured in a fork of a process that imported all."""

CASES: dict[str, dict[str, Any]] = {
    "as in the files": {"precision": "bf16"},
    "converted": {"precision": "fp32", "vit_precision": "bf16", "imagebind_precision": "bf16"},
    "converted by us": {
        "precision": "bf16",
        "vit_precision": "bf16",
        "imagebind_precision": "bf16",
    },
    "random": {"precision": "bf16", "ckpt": None, "random_init": True},
}


@pytest.fixture(scope="module")
def large_files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A model of some 300 MB: the LLM's folder in bf16 and one file of the rest in fp32."""
    folder = tmp_path_factory.mktemp("large")
    llama = write_llama_folder(folder / "llama", **LLM)
    settings = golden_settings(None, llama_model=str(llama), **SIZES)
    shapes = {
        name: target.shape
        for name, target in targets_of(build_video_llama(settings, device="meta", seed=0)).items()
    }
    prefix = "llama_model."
    llm = {
        name.removeprefix(prefix): torch.full(shape, 0.5, dtype=torch.bfloat16)
        for name, shape in shapes.items()
        if name.startswith(prefix)
    }
    save_file(llm, llama / "model.safetensors", {"format": "pt"})
    rest = {n: torch.full(shape, 0.5) for n, shape in shapes.items() if not n.startswith(prefix)}
    torch.save({"model": rest}, folder / "rest.pth")
    return {"llama_model": str(llama), "ckpt": str(folder / "rest.pth")}


@pytest.fixture(scope="module")
def measured(large_files: dict[str, str]) -> dict[str, dict[str, int]]:
    cases = json.dumps([{**large_files, **changes} for changes in CASES.values()])
    command = [sys.executable, "-c", MEASURE, cases]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = run.stdout.splitlines()
    assert len(lines) == len(CASES), run.stderr
    return dict(zip(CASES, map(json.loads, lines), strict=True))


def at_most(allowed: float) -> float:
    return LARGEST * allowed + SLACK


@needs_proc
@pytest.mark.parametrize("case", ["as in the files", "converted by us", "random"])
def test_weights_are_in_memory_once(case: str, measured: dict[str, dict[str, int]]) -> None:
    numbers = measured[case]
    assert numbers["weights"] > 180e6
    assert numbers["resident"] <= at_most(numbers["weights"])


@needs_proc
def test_converted_weights_are_in_memory_once(measured: dict[str, dict[str, int]]) -> None:
    # Pages of the file that were read on the way do not count: the system drops them at need.
    numbers = measured["converted"]
    assert numbers["converted"] > 250e6
    assert numbers["anonymous"] <= at_most(numbers["converted"])


@needs_proc
def test_weights_that_need_no_change_stay_in_their_file(
    measured: dict[str, dict[str, int]],
) -> None:
    assert measured["as in the files"]["anonymous"] <= SLACK
