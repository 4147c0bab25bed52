"""What can be set about the page's server. Torch-free and Gradio-free."""

from __future__ import annotations

from dataclasses import dataclass

from video_llama.types import ConfigError


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """How the page is served.

    Raises:
        ConfigError: a value is out of range.
    """

    server_name: str = "127.0.0.1"
    """Address to listen on; `0.0.0.0` lets other machines in."""
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
        limits: dict[str, tuple[float, float]] = {
            "port": (1, 65535),
            "max_file_mb": (0.001, 1e6),
            "max_upload_gb": (0.001, 1e6),
            "max_minutes": (0.01, 1e5),
            "max_queue": (1, 100_000),
            "concurrency": (1, 1000),
        }
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if value is not None and not low <= value <= high:
                flag = "--" + name.replace("_", "-")
                raise ConfigError(f"{flag}: {value} given, {low:g} to {high:g} expected")


def parse_auth(text: str) -> tuple[str, str]:
    """Name and password from `user:password`; the password may hold colons.

    Raises:
        ConfigError: one of the two is missing.
    """
    user, _, password = text.partition(":")
    if not user or not password:
        raise ConfigError("--auth: USER:PASSWORD expected, both not empty")
    return user, password
