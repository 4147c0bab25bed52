"""The page, served by this process to itself, for the tests."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import httpx

from tests.tiny_chat import tiny_chat
from video_llama.apps.page.options import ServerOptions
from video_llama.apps.page.server import Page, prepare, serve

GRACE = 1.0
"""Seconds for which a page may lose its connection."""

MAX_FILE_MB = 2.0

NO_AUDIO_BRANCH = (
    "model.equip_audio_branch=false",
    "model.imagebind_ckpt_path=null",
    "model.ckpt_2=null",
)
"""Overrides for a model without an audio branch."""


@contextmanager
def served(*overrides: str, **options: object) -> Iterator[Page]:
    """A page with the tiny model; `overrides` change its configuration."""
    values = {"max_file_mb": MAX_FILE_MB, "max_minutes": 0.2, "concurrency": 2, **options}
    server = ServerOptions(**values)  # type: ignore[arg-type]
    # Gradio has one folder for uploads in a process: that of the page which was made last.
    outer = {name: value for name, value in os.environ.items() if name.startswith("GRADIO")}
    page = serve(tiny_chat(*overrides), server, prepare(server), grace=GRACE)
    try:
        yield page
    finally:
        page.close()
        os.environ.update(outer)


def fill_queue(url: str) -> list[str]:
    """Ask for long answers until nobody else is let in; the ids of those who ask."""
    options = [1.0, 1, 0.9, 1.0, 1.0, 1500, 1500, 1]
    visitors: list[str] = []
    while len(visitors) < 100:
        visitors.append(f"busy{len(visitors)}")
        body = {"data": ["Tell me all.", *options], "session_hash": visitors[-1]}
        if httpx.post(f"{url}gradio_api/call/ask", json=body).status_code == 503:
            return visitors
    raise AssertionError("the queue takes everybody")


def call(page: Page, endpoint: str, *data: Any, session: str = "s") -> httpx.Response:
    body = {"data": list(data), "session_hash": session}
    return httpx.post(f"{page.url}gradio_api/call/{endpoint}", json=body)


def result(page: Page, endpoint: str, *data: Any, session: str = "s") -> tuple[str, Any]:
    """The last event of a call, and what came with it."""
    event = call(page, endpoint, *data, session=session).raise_for_status().json()["event_id"]
    url = f"{page.url}gradio_api/call/{endpoint}/{event}"
    lines = httpx.get(url, timeout=100).text.strip().splitlines()
    return lines[-2].removeprefix("event: "), json.loads(lines[-1].removeprefix("data: "))
