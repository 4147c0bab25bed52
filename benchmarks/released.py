"""Write stand-ins of the released weight files: their names, keys, shapes and types, random values.

    python -m benchmarks.released OUT [--size tiny|7b|13b] [--device cuda]

They show whether a machine can load and run a model before 30 GB are downloaded, and are what the
GPU benchmark loads. The answers are nonsense. The unused towers of ImageBind are left out.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

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
"""Key of the setting: the groups of weights in its file, and the prefix that its names lack."""
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
        settings = load_config(configuration(size), []).model
        settings = _settings(settings, found["llama_model"])
        for key, (groups, prefix) in GROUPS_OF_FILES.items():
            dtype = torch.float16 if key == "vit_ckpt" else torch.float32
            shapes = dict(_shapes(settings, groups))
            state = {
                name.removeprefix(prefix): _random(name, shape, dtype, device)
                for name, shape in shapes.items()
            }
            # EVA's and ImageBind's files are bare, all others have a "model" entry.
            torch.save(state if prefix else {"model": state}, found[key])
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _settings(settings: ModelSettings, llm: Path) -> ModelSettings:
    settings.llama_model = str(llm)
    return settings


def _shapes(settings: ModelSettings, groups: set[str]) -> Iterator[tuple[str, torch.Size]]:
    """Yield the original's names and shapes of some groups of weights."""
    model = build_video_llama(settings, device="meta", seed=0)
    for name, parameter in model.named_parameters():
        original = original_name(name)
        if group_of(original) in groups:
            yield original, parameter.shape


def _random(name: str, shape: torch.Size, dtype: torch.dtype, device: str) -> Tensor:
    """Norms that leave their input as it is, biases of 0, and small random numbers elsewhere."""
    low = name.lower()
    make: Callable[..., Tensor] = torch.randn
    if name.endswith("bias"):
        make = torch.zeros
    elif "norm" in low or "ln_" in low:
        make = torch.ones
    values = make(shape, device=device, dtype=dtype)
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
    settings = _settings(load_config(configuration(size), []).model, folder)
    prefix = "llama_model."
    shapes = {n.removeprefix(prefix): s for n, s in _shapes(settings, {"language_model"})}
    shards: list[list[str]] = [[]]
    held = 0
    for name, shape in shapes.items():
        if held > SHARD_BYTES:
            shards.append([])
            held = 0
        shards[-1].append(name)
        held += 2 * shape.numel()
    places: dict[str, str] = {}
    for index, names in enumerate(shards, start=1):
        file = f"model-{index:05d}-of-{len(shards):05d}.safetensors"
        tensors = {n: _random(n, shapes[n], torch.float16, device).contiguous() for n in names}
        save_file(tensors, folder / file, {"format": "pt"})
        places |= dict.fromkeys(names, file)
    total = 2 * sum(shape.numel() for shape in shapes.values())
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
