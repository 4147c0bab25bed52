"""Messages and scores of the task `video_llama_world` of lmms-eval."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from video_llama.runners.task import is_exact_match

WORLD = Path(os.environ.get("VIDEO_LLAMA_WORLD", "output/world/test"))
"""Folder of the clips."""


def messages(doc: dict[str, Any]) -> list[dict[str, Any]]:
    """Ask the question of an item about its clip."""
    clip = {"type": "video", "url": str(WORLD / doc["path"])}
    return [{"role": "user", "content": [clip, {"type": "text", "text": doc["question"]}]}]


def scores(doc: dict[str, Any], results: list[str]) -> dict[str, float]:
    """Compare an answer with that of the item, as `video-llama evaluate` does."""
    return {"exact_match": float(is_exact_match(results[0], doc["answer"]))}
