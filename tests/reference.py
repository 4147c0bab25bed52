"""Where the tests find the project's root and the reference folder, which a lone clone lacks."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
"""The root of the checkout."""

SHARED = Path(os.environ.get("VIDEO_LLAMA_SHARED", ROOT.parent / "shared"))
"""The reference folder: golden numbers, tokenizers and media."""

GOLDEN = ROOT / "tests" / "golden"
"""The condensed numbers that travel with the tests."""

needs_shared = pytest.mark.skipif(
    not (SHARED / "golden").is_dir(),
    reason=f"the reference folder is not at {SHARED} (VIDEO_LLAMA_SHARED names another place)",
)
"""Marks a test that reads the reference folder; it is skipped where there is none."""
