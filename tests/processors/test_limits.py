"""Every limit can be set, and errors name the variable that does it."""

from __future__ import annotations

from pathlib import Path

import pytest

from video_llama.processors import limits
from video_llama.processors.limits import LIMITS, Budget, CostError, limit, limit_key
from video_llama.types import ConfigError, MediaError


@pytest.mark.parametrize("name", LIMITS)
def test_the_environment_sets_every_limit(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert limit(name) == LIMITS[name]
    assert f"* `{name}`: " in Path(limits.__file__).read_text()
    monkeypatch.setenv(limit_key(name), "7")
    assert limit(name) == 7
    monkeypatch.setenv(limit_key(name), "many")
    with pytest.raises(ConfigError, match=f"{limit_key(name)}: 'many' given, a whole number"):
        limit(name)


def test_a_budget_names_what_was_spent_and_what_raises_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VIDEO_LLAMA_MAX_VIDEO_PIXELS", "1000")
    budget = Budget("a.mp4")
    budget.spend(30, 30)
    with pytest.raises(CostError, match=r"at most 1000 pixels .*VIDEO_LLAMA_MAX_VIDEO_PIXELS"):
        budget.spend(11, 10)
    monkeypatch.setattr(limits.time, "monotonic", lambda: 1e9)
    with pytest.raises(MediaError, match=r"takes too long, at most 60 s .*VIDEO_LLAMA_MAX_SECONDS"):
        budget.check_time()
