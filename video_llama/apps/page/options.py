"""Options of the page's server. Torch-free and Gradio-free: `--help` reads them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address

from video_llama.types import ConfigError

_HOST = re.compile(
    r"(?:\[(?P<bracketed>[0-9a-f:.]+)\]|(?P<name>[\w.-]+))(?::\d*)?", re.ASCII | re.I
)

_LIMITS: dict[str, tuple[float, float]] = {
    "port": (1, 65535),
    "max_file_mb": (0.001, 1e6),
    "max_upload_gb": (0.001, 1e6),
    "max_minutes": (0.01, 1e5),
    "max_queue": (1, 100_000),
    "concurrency": (1, 1000),
}


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How the page is served.

    Raises:
        ConfigError: a value is out of range.
    """

    server_name: str = "127.0.0.1"
    """Address to listen on; `0.0.0.0` lets other machines in."""
    allow_host: tuple[str, ...] = ()
    """Further names by which browsers may open the page, such as that of a proxy in front of it."""
    port: int | None = None
    """TCP port; None: the first free one from 7860 on."""
    share: bool = False
    """Whether the page also gets a public address, through a tunnel of Gradio's makers."""
    auth: tuple[str, str] | None = None
    """Name and password that visitors must give; None: anybody may come in."""
    max_file_mb: float = 200.0
    """Largest file that may be uploaded, MB."""
    max_upload_gb: float = 10.0
    """Most that may be uploaded from one address in a day, GB."""
    max_minutes: float = 60.0
    """Longest clip or sound, minutes."""
    max_queue: int = 32
    """Most questions and files that wait for their turn; who comes later is turned away."""
    concurrency: int = 4
    """Most visitors who are answered at the same time."""

    def __post_init__(self) -> None:
        for name, (low, high) in _LIMITS.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag}: {value} given, {low:g} to {high:g} expected")
        # Refused now, because a name that is misspelt would never match, and nobody would know why.
        for name in self.allow_host:
            if host_name(name) is None:
                raise ConfigError(
                    f"--allow-host: {name!r} given, a name or an address expected, "
                    "such as chat.example.org"
                )


def parse_auth(text: str) -> tuple[str, str]:
    """Split `user:password`; the password may hold colons.

    Raises:
        ConfigError: one of the two is missing.
    """
    user, _, password = text.partition(":")
    if not user or not password:
        raise ConfigError("--auth: USER:PASSWORD expected, both not empty")
    return user, password


def host_name(text: str) -> str | None:
    """Return the host of `name:port`, without the port and in one spelling; None if it is none.

    Args:
        text: a name, an IPv4 address or an IPv6 address in brackets; the port may be missing.
    """
    match = _HOST.fullmatch(text)
    if match is None:
        return None
    # "LocalHost." and "localhost" are one name to the DNS.
    name = (match["name"] or match["bracketed"]).lower().removesuffix(".")
    address = host_address(name)
    if match["bracketed"] and not isinstance(address, IPv6Address):
        return None
    return (address.compressed if address else name) or None


def host_address(name: str) -> IPv4Address | IPv6Address | None:
    """Return the IP address that a host is written as; None for a name."""
    try:
        return ip_address(name)
    except ValueError:
        return None
