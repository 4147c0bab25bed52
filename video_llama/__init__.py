"""Video-LLaMA: an audio-visual language model that watches a clip, hears it and talks about it.

The three public names are looked up when they are first used, so that `import video_llama` stays
quick and imports no torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from video_llama.build import build_model
    from video_llama.chat import Chat
    from video_llama.config import load_config

__version__ = "0.1.0"
__all__ = ["Chat", "__version__", "build_model", "load_config"]

_HOMES = {
    "Chat": "video_llama.chat",
    "build_model": "video_llama.build",
    "load_config": "video_llama.config",
}
"""Which module defines a public name."""


def __getattr__(name: str) -> object:
    """Import the module of a public name when the name is first used (PEP 562)."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(importlib.import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOMES})
