from __future__ import annotations

import pytest

from video_llama.common.registry import Registry, suggestion
from video_llama.types import ConfigError


@pytest.fixture
def tools() -> Registry[str]:
    registry: Registry[str] = Registry("tool")
    registry.register("saw")("a saw")
    registry.register("hammer")("a hammer")
    return registry


def test_get_returns_what_was_registered(tools: Registry[str]) -> None:
    assert tools.get("hammer") == "a hammer"
    assert "hammer" in tools
    assert "nail" not in tools


def test_register_is_a_decorator_that_returns_its_entry() -> None:
    registry: Registry[type] = Registry("part")

    @registry.register("wheel")
    class Wheel: ...

    assert registry.get("wheel") is Wheel


def test_names_come_sorted(tools: Registry[str]) -> None:
    assert list(tools) == ["hammer", "saw"]


def test_unknown_name_says_kind_known_names_and_the_nearest(tools: Registry[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        tools.get("hamer")
    for fact in ("tool", "'hamer'", "did you mean 'hammer'", "hammer, saw"):
        assert fact in str(caught.value)


def test_a_name_is_registered_once(tools: Registry[str]) -> None:
    with pytest.raises(ValueError, match="'saw' is registered twice"):
        tools.register("saw")("another saw")


def test_suggestion_is_silent_about_names_that_are_not_near() -> None:
    assert suggestion("zzz", ["b", "a"]) == "valid: a, b"
