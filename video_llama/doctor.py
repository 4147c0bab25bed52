"""`video-llama doctor`: what is wrong with a configuration, before anything heavy is loaded."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from video_llama.config import Config


def path_problems(cfg: Config) -> Iterator[str]:
    """Files and folders that are missing or of the wrong kind, and a template that cannot fit."""
    yield from _llm_problems(cfg)
    yield from _weight_problems(cfg)
    if cfg.model.prompt_path and not Path(cfg.model.prompt_path).is_file():
        yield (
            f"model.prompt_path: {cfg.model.prompt_path} is no file; the shipped one is "
            "prompts/alignment_image.txt"
        )
    if cfg.model.trained_branch or cfg.run.evaluate:
        yield from _data_problems(cfg)


def _llm_problems(cfg: Config) -> Iterator[str]:
    folder = Path(cfg.model.llama_model)
    if folder.is_file():
        yield f"model.llama_model: {folder} is a file; give the folder that holds config.json"
        return
    if not folder.is_dir():
        yield (
            f"model.llama_model: there is no folder {folder}; download LLaMA-2-7b-chat-hf or "
            "Vicuna into it, or give the right path"
        )
        return
    for name in ("config.json", "tokenizer.model"):
        if not (folder / name).is_file():
            yield f"model.llama_model: {folder} has no {name}; the download is incomplete"
    weights = [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]
    if not weights and not cfg.model.random_init and not cfg.model.ckpt:
        yield (
            f"model.llama_model: {folder} has no *.safetensors or *.bin; download the weights, or "
            "set model.random_init=true for a model that speaks nonsense"
        )
    yield from _template_problems(folder.name, cfg.model.template)


def _template_problems(folder_name: str, template: str) -> Iterator[str]:
    name = folder_name.lower().replace("_", "-")
    family = "vicuna" if "vicuna" in name else "llama_v2" if "llama-2" in name else template
    if family != template:
        yield (
            f"model.template: {template} is the format of another family than {folder_name}; set "
            f"model.model_type=pretrain_{family}"
        )


def _weight_problems(cfg: Config) -> Iterator[str]:
    model = cfg.model
    files = {
        "vit_ckpt": model.vit_ckpt,
        "q_former_model": model.q_former_model,
        "llama_proj_model": model.llama_proj_model,
        "imagebind_ckpt_path": model.imagebind_file if model.equip_audio_branch else None,
        "ckpt": model.ckpt,
        "ckpt_2": model.ckpt_2,
    }
    for key, value in files.items():
        if not value:
            continue
        path = Path(value)
        if path.is_dir():
            held = ", ".join(sorted(entry.name for entry in path.iterdir())[:5]) or "nothing"
            yield f"model.{key}: {path} is a folder, a file is needed; it holds {held}"
        elif not path.is_file():
            yield (
                f"model.{key}: there is no file {path}; the README's table of weights says where "
                "to get it, or correct the path"
            )


def _data_problems(cfg: Config) -> Iterator[str]:
    for name, entry in cfg.datasets.items():
        for key in ("anno_dir", "videos_dir", "storage"):
            value = getattr(entry.build_info, key)
            # Tar patterns such as {00000..01255}.tar are spelled out by the data set.
            if value and "{" not in value and not Path(value).exists():
                yield (
                    f"datasets.{name}.build_info.{key}: {value} does not exist; give the path of "
                    "the data (docs/data.md describes the layout of each set)"
                )
