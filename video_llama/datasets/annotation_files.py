"""What an annotation is read from."""

from __future__ import annotations

import stat
from pathlib import Path

from video_llama.types import ConfigError


def refuse_device(path: Path) -> None:
    """Refuse what is neither a file nor a folder: reading it might never end.

    What cannot be looked at is left to whoever opens it.

    Raises:
        ConfigError: it is a pipe, a socket or a device.
    """
    try:
        mode = path.stat().st_mode
    except (OSError, ValueError):
        return
    if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        raise ConfigError(f"{path}: a pipe or a device given, an annotation file expected")
