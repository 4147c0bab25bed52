"""Video-LLaMA: an audio-visual language model that watches a clip, hears it and talks about it.

The public names are looked up when they are first used, so that `import video_llama` stays
quick and imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from video_llama.chat.engine import Chat
    from video_llama.config.build import build_model
    from video_llama.config.load import load_config
    from video_llama.text.templates import TEMPLATES
    from video_llama.text.tokenizer import load_tokenizer

__version__ = "0.1.0"
__all__ = ["TEMPLATES", "Chat", "__version__", "build_model", "load_config", "load_tokenizer"]

_HOMES = {
    "TEMPLATES": "video_llama.text.templates",
    "Chat": "video_llama.chat.engine",
    "build_model": "video_llama.config.build",
    "load_config": "video_llama.config.load",
    "load_tokenizer": "video_llama.text.tokenizer",
}
"""Which module defines a public name."""


def __getattr__(name: str) -> object:
    """Import the module of a public name when the name is first used (PEP 562)."""
    if name == "hf":  # classes for transformers
        return importlib.import_module("video_llama.apps.hf")
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
