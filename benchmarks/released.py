"""Write stand-ins of the released weight files: their names, keys, shapes and types, random values.

    python -m benchmarks.released OUT [--size tiny|7b|13b] [--device cuda]

They show whether a machine can load and run a model before 30 GB are downloaded, and are what the
GPU benchmark loads. The answers are nonsense. At 7b and 13b the files hold what the model never
uses, too: EVA's 40th block and head, ImageBind's other towers, buffers.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from tests import full_model
from video_llama.common.io import package_file, resource
from video_llama.config.load import load_config
from video_llama.models.build import build_video_llama
from video_llama.models.settings import ModelSettings
from video_llama.models.weights.checks import RELEASED_SIZES
from video_llama.models.weights.names import group_of, original_name

LLM = "llama-2-{size}-chat-hf"
FILES = {
    "vit_ckpt": "eva_vit_g.pth",
    "q_former_model": "blip2_pretrained_flant5xxl.pth",
    "llama_proj_model": "pretrained_minigpt4.pth",
    "imagebind_ckpt_path": "imagebind_path/imagebind_huge.pth",
    "ckpt": "VL_LLaMA_2_{upper}_Finetuned.pth",
    "ckpt_2": "AL_LLaMA_2_{upper}_Finetuned.pth",
}
GROUPS_OF_FILES = {
    "vit_ckpt": ({"vision_encoder"}, "visual_encoder."),
    "q_former_model": ({"vision_norm", "frame_qformer"}, ""),
    "llama_proj_model": ({"video_proj"}, ""),
    "imagebind_ckpt_path": ({"audio_encoder"}, "audio_encoder."),
    "ckpt": ({"video_branch", "video_proj"}, ""),
    "ckpt_2": ({"audio_branch"}, ""),
}
"""Setting of a tiny file: the groups of weights in it, and the prefix that its names lack."""
SHARD_BYTES = 5e9
VOCABULARY = 32000


def paths(folder: Path, size: str) -> dict[str, Path]:
    """Return the files of a folder by the settings that name them."""
    named = {"llama_model": LLM, **FILES}
    return {key: folder / name.format(size=size, upper=size.upper()) for key, name in named.items()}


def overrides(folder: Path, size: str) -> list[str]:
    """Return the options that make a configuration use the files of a folder."""
    return [f"model.{key}={path}" for key, path in paths(folder, size).items()]


def configuration(size: str) -> Path:
    """Return the chat configuration whose sizes the files have."""
    name = "tiny" if size == "tiny" else "video_llama_eval_withaudio"
    return resource(f"eval_configs/{name}.yaml")


def write(folder: Path, size: str, device: str) -> None:
    """Write all files, or none: they are made beside `folder` and moved there at the end.

    Args:
        folder: does not exist yet.
        size: tiny, 7b or 13b.
        device: where random values are made.

    Raises:
        FileExistsError: `folder` exists.
    """
    if folder.exists():
        raise FileExistsError(f"{folder} exists; give another folder, or remove it")
    partial = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    torch.manual_seed(0)
    try:
        (partial / "imagebind_path").mkdir(parents=True)
        found = paths(partial, size)
        _write_llm(found["llama_model"], size, device)
        for key, content in contents(size, found["llama_model"]).items():
            state = content.get("model", content)
            filled = {name: _random(name, tensor, device) for name, tensor in state.items()}
            torch.save(content | {"model": filled} if "model" in content else filled, found[key])
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def contents(size: str, llm: Path) -> dict[str, dict[str, Any]]:
    """Return what each file but the LLM's holds, by its setting; the tensors take no memory.

    Args:
        llm: the folder of the LLM, which has been written.
    """
    if size == "tiny":
        return dict(_tiny_contents(llm))
    width = RELEASED_SIZES[size]["hidden_size"]
    return {
        "vit_ckpt": full_model.eva_vit_g(),
        "q_former_model": full_model.blip2_flant5xxl(),
        "llama_proj_model": full_model.minigpt4(width),
        "imagebind_ckpt_path": full_model.imagebind_huge(),
        "ckpt": full_model.branch_file("video", width),
        "ckpt_2": full_model.branch_file("audio", width),
    }


def _tiny_contents(llm: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    settings = load_config(configuration("tiny"), [f"model.llama_model={llm}"]).model
    for key, (groups, prefix) in GROUPS_OF_FILES.items():
        dtype = torch.float16 if key == "vit_ckpt" else torch.float32
        state = {
            name.removeprefix(prefix): torch.empty(shape, dtype=dtype, device="meta")
            for name, shape in _shapes(settings, groups)
        }
        # EVA's and ImageBind's files are bare, all others have a "model" entry.
        yield key, state if prefix else {"model": state}


def _shapes(settings: ModelSettings, groups: set[str]) -> Iterator[tuple[str, torch.Size]]:
    """Yield the original's names and shapes of some groups of weights."""
    model = build_video_llama(settings, device="meta", seed=0)
    for name, parameter in model.named_parameters():
        original = original_name(name)
        if group_of(original) in groups:
            yield original, parameter.shape


def _random(name: str, tensor: Tensor, device: str) -> Tensor:
    """Norms that leave their input as it is, biases of 0, and small random numbers elsewhere."""
    low, shape = name.lower(), tensor.shape
    if not tensor.is_floating_point():  # position_ids
        return torch.arange(tensor.numel(), dtype=tensor.dtype).view(shape)
    make: Callable[..., Tensor] = torch.randn
    if name.endswith("bias"):
        make = torch.zeros
    elif "norm" in low or "ln_" in low:
        make = torch.ones
    values = make(shape, device=device, dtype=tensor.dtype)
    return (values.mul_(0.02) if make is torch.randn else values).cpu()


def _write_llm(folder: Path, size: str, device: str) -> None:
    """Write a LLaMA in half precision, in shards as transformers writes them."""
    shipped = package_file("presets/tiny/llama")
    folder.mkdir()
    values = json.loads((shipped / "config.json").read_text("utf-8"))
    if size != "tiny":
        values |= RELEASED_SIZES[size] | {"vocab_size": VOCABULARY, "torch_dtype": "float16"}
        values |= {"num_key_value_heads": values["num_attention_heads"], "head_dim": None}
        values["max_position_embeddings"] = 4096
    (folder / "config.json").write_text(json.dumps(values, indent=1), "utf-8")
    (folder / "tokenizer.model").write_bytes((shipped / "tokenizer.model").read_bytes())
    settings = load_config(configuration(size), [f"model.llama_model={folder}"]).model
    prefix = "llama_model."
    shapes = {
        name.removeprefix(prefix): torch.empty(shape, dtype=torch.float16, device="meta")
        for name, shape in _shapes(settings, {"language_model"})
    }
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        if held > SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += shape.nbytes
    places: dict[str, str] = {}
    for index, names in enumerate(shards, start=1):
        file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        tensors = {name: _random(name, shapes[name], device).contiguous() for name in names}
        save_file(tensors, folder / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    total = sum(shape.nbytes for shape in shapes.values())
    table = {"metadata": {"total_size": total}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(table, indent=1), "utf-8")


def main() -> None:
    """Write the files."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="the folder to make")
    parser.add_argument("--size", choices=("tiny", "7b", "13b"), default="7b")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    write(args.out, args.size, args.device)
    print(f"{args.out}: {sum(f.stat().st_size for f in args.out.rglob('*.*')) / 1e9:.2f} GB")
    print("use it with --options " + " ".join(overrides(args.out, args.size)))


if __name__ == "__main__":
    main()
