"""The options of the page's server: what is refused, and how hosts are spelt."""

from __future__ import annotations

import pytest

from video_llama.apps.page.options import ServerOptions, host_name, parse_auth
from video_llama.types import ConfigError


@pytest.mark.parametrize("text", ["", "me", "me:", ":secret", ":"])
def test_half_a_login_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="USER:PASSWORD expected"):
        parse_auth(text)


@pytest.mark.parametrize("name", ["", "http://a.example", "a b", "*.example", "a:b", "/"])
def test_a_host_that_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=r"--allow-host: .* expected, such as"):
        ServerOptions(allow_host=("localhost", name))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("port", 0),
        ("port", 65536),
        ("max_file_mb", 0),
        ("max_file_mb", float("nan")),
        ("max_minutes", -1),
        ("max_upload_gb", 0),
        ("max_queue", 0),
        ("concurrency", 0),
    ],
)
def test_a_value_out_of_range_names_the_flag(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match="--" + name.replace("_", "-") + ": .* expected"):
        ServerOptions(**{name: value})


@pytest.mark.parametrize(
    ("text", "host"),
    [
        ("LocalHost.:7860", "localhost"),
        ("127.0.0.1:80", "127.0.0.1"),
        ("[0:0::1]:80", "::1"),
        ("::1", None),
        ("[127.0.0.1]", None),
        ("a b", None),
        ("", None),
    ],
)
def test_a_host_has_one_spelling_and_no_port(text: str, host: str | None) -> None:
    assert host_name(text) == host
