"""Names and shapes of the original's 7B model, and stand-ins of the released files.

The stand-ins have every name and shape of a released file but store one number, so that they are
small. The names come from the reference folder; what the tests need of them lies in
`tests/golden/full_model_keys.json.gz`, which this module writes:

    python -m tests.full_model
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from tests.reference import GOLDEN, SHARED

KEYS = GOLDEN / "full_model_keys.json.gz"

Shapes = dict[str, list[int]]
Branch = Literal["video", "audio"]


@dataclass(frozen=True)
class FullModel:
    """The original's 7B model with audio branch.

    Attributes:
        shapes: of every state-dict entry.
        buffers: the entries that are no parameters.
        branches: for the model that trains a branch: total_params, trainable_params,
            trainable_keys, weight_decay_keys, no_weight_decay_keys, saved_checkpoint_keys.
    """

    shapes: Shapes
    buffers: list[str]
    branches: dict[str, dict[str, Any]]

    def parameters(self) -> Shapes:
        buffers = set(self.buffers)
        return {name: shape for name, shape in self.shapes.items() if name not in buffers}

    def saved(self, branch: Branch) -> Shapes:
        """What the original's checkpoint of a branch holds: parameters and all buffers."""
        return {key: self.shapes[key] for key in self.branches[branch]["saved_checkpoint_keys"]}


@cache
def full_model() -> FullModel:
    return FullModel(**json.loads(gzip.decompress(KEYS.read_bytes())))


def read_reference() -> FullModel:
    content = json.loads((SHARED / "golden/full_model_keys.json").read_text("utf-8"))
    entries, configs = content["state_dict"], content["configs"]
    kept = ("total_params", "trainable_params", "trainable_keys", "saved_checkpoint_keys")
    kept += ("weight_decay_keys", "no_weight_decay_keys")
    stages = {"video": "vl_stage1", "audio": "al_stage1"}
    return FullModel(
        shapes={key: entry["shape"] for key, entry in entries.items()},
        buffers=[key for key, entry in entries.items() if entry["kind"] == "buffer"],
        branches={b: {key: configs[stage][key] for key in kept} for b, stage in stages.items()},
    )


UNUSED_TOWER = re.compile(r"audio_encoder\.modality_\w+\.(text|depth|thermal|imu)\.")


def stand_in(shapes: Mapping[str, list[int]], dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """A state dict of ones with these shapes that stores one number per kind."""
    number = torch.ones((), dtype=dtype)
    index = torch.zeros((), dtype=torch.int64)
    return {
        name: (index if name.endswith("position_ids") else number).expand(shape)
        for name, shape in shapes.items()
    }


def write(path: Path, content: Mapping[str, Any]) -> Path:
    torch.save(dict(content), path)
    return path


def training_checkpoint(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What the original's runner puts around a state dict."""
    moments = {0: {"step": torch.tensor(7.0), "exp_avg": torch.zeros(2)}}
    return {
        "model": dict(state),
        "optimizer": {"state": moments, "param_groups": [{"lr": 1e-4, "params": [0]}]},
        "config": {"run": {"task": "video_text_pretrain"}, "model": {"arch": "video_llama"}},
        "scaler": {"scale": 65536.0, "growth_factor": 2.0},
        "epoch": 4,
    }


def eva_vit_g() -> dict[str, Any]:
    """EVA's own file: 40 blocks, a norm and a head, half precision, names without prefix."""
    prefix = "visual_encoder."
    shapes = {
        name.removeprefix(prefix): shape
        for name, shape in full_model().shapes.items()
        if name.startswith(prefix)
    }
    last = {n.replace(".38.", ".39."): s for n, s in shapes.items() if n.startswith("blocks.38.")}
    above = {"norm.weight": [1408], "norm.bias": [1408], "head.weight": [1000, 1408]}
    return stand_in({**shapes, **last, **above, "head.bias": [1000]}, torch.float16)


def blip2_flant5xxl(*, with_text_branch: bool = False) -> dict[str, Any]:
    """BLIP-2's file: Q-Former, its queries, ln_vision and a projection to its own LLM."""
    shapes = {
        name: shape
        for name, shape in full_model().shapes.items()
        if name.startswith(("Qformer.", "query_tokens", "ln_vision."))
    }
    shapes |= {"t5_proj.weight": [4096, 768], "t5_proj.bias": [4096]}
    if with_text_branch:
        bert = "Qformer.bert."
        shapes[f"{bert}embeddings.word_embeddings.weight"] = [30523, 768]
        shapes[f"{bert}embeddings.position_embeddings.weight"] = [512, 768]
        shapes[f"{bert}encoder.layer.3.intermediate.dense.weight"] = [3072, 768]
        shapes[f"{bert}encoder.layer.3.output.LayerNorm.bias"] = [768]
        shapes["Qformer.cls.predictions.bias"] = [30523]
    return {"model": stand_in(shapes)}


def minigpt4(llm_width: int = 4096) -> dict[str, Any]:
    """MiniGPT-4's file: the projection to the LLM in a training checkpoint."""
    shapes = {"llama_proj.weight": [llm_width, 768], "llama_proj.bias": [llm_width]}
    return training_checkpoint(stand_in(shapes))


def imagebind_huge() -> dict[str, Any]:
    """ImageBind's file: six towers and buffers, names without prefix."""
    prefix = "audio_encoder."
    return stand_in(
        {n.removeprefix(prefix): s for n, s in full_model().shapes.items() if n.startswith(prefix)}
    )


def branch_file(branch: Branch, llm_width: int = 4096) -> dict[str, Any]:
    """The released branch files (VL_LLaMA_2_7B_Finetuned.pth, finetune-*.pth, AL_...)."""
    shapes = {
        name: [llm_width, *shape[1:]] if "llama_proj." in name else shape
        for name, shape in full_model().saved(branch).items()
    }
    return training_checkpoint(stand_in(shapes))


if __name__ == "__main__":
    text = json.dumps(vars(read_reference()), separators=(",", ":"))
    KEYS.write_bytes(gzip.compress(text.encode(), mtime=0))
