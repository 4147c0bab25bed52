"""The line that says which model answers: the page shows it, and the terminal once."""

from __future__ import annotations

from pathlib import Path

from video_llama.common.io import package_file
from video_llama.models.video_llama import VideoLlama
from video_llama.synthetic.scene import KINDS

TINY = (
    f"Tiny demo model: knows {', '.join(f'{kind}s' for kind in KINDS[:-1])} and {KINDS[-1]}s of a "
    "drawn world; for real weights see docs/weights.md"
)


def model_line(model: VideoLlama) -> str:
    """Name the model and what it knows; empty where random weights make it know nothing."""
    settings = model.settings
    if model.random_modules:
        return ""
    llama = Path(settings.llama_model)
    # Branches that were trained on the tiny preset know the same world.
    if llama.resolve() == package_file("presets/tiny/llama").resolve():
        return TINY
    branches = [Path(file).name for file in (settings.ckpt, settings.ckpt_2) if file]
    return f"Video-LLaMA on {llama.name}" + (f", with {' and '.join(branches)}" * bool(branches))
