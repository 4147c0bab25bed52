"""The tiny model of the golden numbers: weights and inputs by formula, and what they must give.

The numbers come from the original system. The reference folder has them whole; a lone clone has a
sample of every array in `tests/golden/tiny_model.npz`, which this module writes:

    python -m tests.golden_model
"""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
import zlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tests.golden_arrays import GoldenArray, read_samples, write_samples
from tests.reference import GOLDEN, SHARED
from video_llama.models.build import build_video_llama
from video_llama.models.settings import (
    Branch,
    ImageBindSettings,
    ModelSettings,
    QFormerSettings,
    VitSettings,
)
from video_llama.models.video_llama import VideoLlama

SAMPLES = GOLDEN / "tiny_model.npz"
TOKENIZER = GOLDEN / "tiny_tokenizer" / "tokenizer.model"


@dataclass(frozen=True)
class Golden:
    """What the original computed, and from what.

    Attributes:
        config: sizes of its tiny model.
        parameters: shape of every parameter by its name; the weights follow from them.
        inputs: name and shape of the input of each case; the values follow from them.
        texts: prompts.
        arrays: outputs by name, `case/what`.
    """

    config: dict[str, Any]
    parameters: dict[str, list[int]]
    inputs: dict[str, tuple[str, list[int]]]
    texts: dict[str, Any]
    arrays: dict[str, GoldenArray]

    def input(self, name: str) -> Tensor:
        """An input of a case, such as `encode_video/image1/in_image`."""
        key, shape = self.inputs[name]
        return torch.from_numpy(normal(f"input/{key}", shape).astype(np.float32))

    def case(self, case: str) -> dict[str, GoldenArray]:
        """The outputs of one case by their names within it."""
        return {n.rpartition("/")[2]: a for n, a in self.arrays.items() if case_of(n) == case}


def case_of(name: str) -> str:
    return name.rpartition("/")[0]


def normal(key: str, shape: list[int]) -> Any:
    """Standard normal values that depend on the key alone."""
    return np.random.Generator(np.random.PCG64(zlib.crc32(key.encode()))).standard_normal(shape)


def weight(key: str, shape: list[int]) -> Tensor:
    """The value of a parameter: large enough that every part of the model matters."""
    values = normal(key, shape)
    if len(shape) <= 1:
        values = (1 if key.endswith(".weight") else 0) + 0.1 * values
    elif key.endswith((".weight", "in_proj_weight")):
        values = 1.5 * values / np.sqrt(np.prod(shape[1:]))
    else:
        values = 0.5 * values
    return torch.from_numpy(np.asarray(values, dtype=np.float32))


@cache
def golden() -> Golden:
    """The whole numbers where the reference folder is, the samples elsewhere."""
    return read_reference() if (SHARED / "golden").is_dir() else read_condensed()


def read_condensed() -> Golden:
    header, arrays = read_samples(SAMPLES)
    return Golden(**header, arrays=arrays)


def read_reference() -> Golden:
    files = {
        name: json.loads((SHARED / f"golden/tiny_model_{name}.json").read_text("utf-8"))
        for name in ("keys", "inputs", "meta")
    }
    keys, meta = files["keys"], files["meta"]
    with np.load(SHARED / "golden/tiny_model.npz") as file:
        arrays = {name: GoldenArray(file[name].shape, file[name].flatten()) for name in file.files}
    for name, values in meta.items():
        if name.endswith(" grad_norms"):
            case = name.removeprefix("strong:").removesuffix(" grad_norms")
            norms = np.array([values[key] for key in sorted(values)])
            arrays[f"{case}/grad_norms"] = GoldenArray(norms.shape, norms)
    return Golden(
        config={**keys["config"], "vocab_size": keys["llama_vocab_size"]},
        parameters={
            key: entry["shape"]
            for key, entry in keys["state_dict"].items()
            if entry["kind"] == "parameter"
        },
        inputs={name: (i["name"], i["shape"]) for name, i in files["inputs"].items()},
        texts={
            name: text for name, text in meta.items() if "prompt" in name and "norms" not in name
        },
        arrays=arrays,
    )


@cache
def golden_files() -> Path:
    """A folder with `llama/` (config.json and tokenizer) and the whole model in `model.pth`."""
    folder = Path(tempfile.mkdtemp(prefix="golden_model_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    write_llama_folder(folder / "llama")
    state = {key: weight(key, shape) for key, shape in golden().parameters.items()}
    torch.save({"model": state}, folder / "model.pth")
    return folder


def write_llama_folder(folder: Path, **config: Any) -> Path:
    """A LLaMA folder without weights, of the golden sizes unless `config` changes them."""
    folder.mkdir(parents=True)
    sizes = {"vocab_size": golden().config["vocab_size"], **golden().config["llama"], **config}
    (folder / "config.json").write_text(json.dumps({**sizes, "model_type": "llama"}), "utf-8")
    shutil.copy(TOKENIZER, folder)
    return folder


def golden_settings(branch: Branch | None = "video", **changes: Any) -> ModelSettings:
    """Settings of the golden model, all in fp32, with one branch that trains."""
    config = golden().config
    eva, bert, imagebind = config["eva"], config["bert"], config["imagebind"]
    values: dict[str, Any] = {
        "llama_model": str(golden_files() / "llama"),
        "ckpt": str(golden_files() / "model.pth"),
        "image_size": eva["img_size"],
        "vit_config": VitSettings(**{key: eva[key] for key in VitSettings.__dataclass_fields__}),
        "qformer_config": QFormerSettings(
            **{key: bert[key] for key in QFormerSettings.__dataclass_fields__}
        ),
        "imagebind_config": ImageBindSettings(
            **{k: v for k, v in imagebind.items() if k in ImageBindSettings.__dataclass_fields__}
        ),
        **{key: config[key] for key in config if key.startswith("num_")},
        "vit_precision": "fp32",
        "precision": "fp32",
        "end_sym": "###",
        "frozen_llama_proj": branch != "video",
        "frozen_video_Qformer": branch != "video",
        "frozen_audio_Qformer": branch != "audio",
    }
    return ModelSettings(**{**values, **changes})


def build_golden(branch: Branch | None = "video", **changes: Any) -> VideoLlama:
    """A golden model of its own, for a test that changes it."""
    return build_video_llama(golden_settings(branch, **changes), device="cpu", seed=0)


@cache
def golden_model(branch: Branch | None = "video") -> VideoLlama:
    """The golden model that tests share: leave its weights and its mode as they are."""
    return build_golden(branch)


if __name__ == "__main__":
    full = read_reference()
    fields = {key: value for key, value in vars(full).items() if key != "arrays"}
    write_samples(SAMPLES, fields, full.arrays)
