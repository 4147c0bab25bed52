"""The tiny preset's sizes with random weights: for tests that no training may decide."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

import yaml

from video_llama.common.io import default_config_path, package_file

TRAINED = ("vit_ckpt", "q_former_model", "imagebind_ckpt_path", "ckpt", "ckpt_2")


@cache
def random_tiny() -> Path:
    """A YAML like `eval_configs/tiny.yaml` whose parts are all random, with 4 audio tokens."""
    folder = Path(tempfile.mkdtemp(prefix="random_tiny_"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    llama = copy_of_llama(folder / "llama")
    content = yaml.safe_load(default_config_path().read_text("utf-8"))
    model = content["model"]
    for key in TRAINED:
        del model[key]
    model |= {"llama_model": str(llama), "random_init": True, "num_audio_query_token": 4}
    path = folder / "random_tiny.yaml"
    path.write_text(yaml.safe_dump(content), "utf-8")
    return path


def copy_of_llama(folder: Path) -> Path:
    """The preset's LLM folder, copied without its weights."""
    source = package_file("presets/tiny/llama")
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    return folder
