"""What the tests of several processors share."""

from __future__ import annotations

import pytest

from video_llama.processors import video_reader


@pytest.fixture(params=["decord", "PyAV"])
def reader(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Runs a test with decord and, as on a machine without decord, with PyAV alone."""
    name: str = request.param
    if name == "PyAV":
        monkeypatch.setattr(video_reader, "decord_module", lambda: None)
    elif video_reader.decord_module() is None:
        pytest.skip("there is no decord for this machine")
    return name
