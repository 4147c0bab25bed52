"""Loading never holds a second copy of the weights: peak memory, measured in other processes."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.golden_model import golden_settings, write_llama_folder
from tests.reference import ROOT
from video_llama.models.build import build_video_llama
from video_llama.models.settings import ImageBindSettings, QFormerSettings, VitSettings
from video_llama.models.weights.load import targets_of

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")

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
import tests.models.weights.test_load_memory as here
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
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
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
        name.removeprefix(prefix): torch.zeros(shape, dtype=torch.bfloat16)
        for name, shape in shapes.items()
        if name.startswith(prefix)
    }
    save_file(llm, llama / "model.safetensors", {"format": "pt"})
    rest = {n: torch.zeros(shape) for n, shape in shapes.items() if not n.startswith(prefix)}
    torch.save({"model": rest}, folder / "rest.pth")
    return {"llama_model": str(llama), "ckpt": str(folder / "rest.pth")}


@pytest.fixture(scope="module")
def measured(files: dict[str, str]) -> dict[str, dict[str, int]]:
    cases = json.dumps([{**files, **changes} for changes in CASES.values()])
    command = [sys.executable, "-c", MEASURE, cases]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    lines = run.stdout.splitlines()
    assert len(lines) == len(CASES), run.stderr
    return dict(zip(CASES, map(json.loads, lines), strict=True))


def at_most(allowed: float) -> float:
    return LARGEST * allowed + SLACK


@pytest.mark.parametrize("case", ["as in the files", "converted by us", "random"])
def test_weights_are_in_memory_once(case: str, measured: dict[str, dict[str, int]]) -> None:
    numbers = measured[case]
    assert numbers["weights"] > 180e6
    assert numbers["resident"] <= at_most(numbers["weights"])


def test_converted_weights_are_in_memory_once(measured: dict[str, dict[str, int]]) -> None:
    # Pages of the file that were read on the way do not count: the system drops them at need.
    numbers = measured["converted"]
    assert numbers["converted"] > 250e6
    assert numbers["anonymous"] <= at_most(numbers["converted"])


def test_weights_that_need_no_change_stay_in_their_file(
    measured: dict[str, dict[str, int]],
) -> None:
    assert measured["as in the files"]["anonymous"] <= SLACK
