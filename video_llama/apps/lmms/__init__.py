"""Video-LLaMA as a model of lmms-eval, which finds it by the entry point `lmms_eval.models`."""

from __future__ import annotations

from typing import Any

MODEL = "video_llama"
"""Its name for `--model`."""


def manifest() -> Any:
    """Say which class lmms-eval loads."""
    # lmms-eval calls this while it is being imported itself: nothing else may be imported here.
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(MODEL, chat_class_path="video_llama.apps.lmms.model.VideoLlamaChat")
