"""A decoder that dies of some files, in a module that a worker process imports quickly."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

from video_llama.processors.decode import DecodedFile, decode_file


def decode_or_die(path: str | Path, *args: Any, **kwargs: Any) -> DecodedFile:
    """Decode a file, or end the process with those that native code dies of."""
    if "deadly" in Path(path).name:
        os.kill(os.getpid(), signal.SIGSEGV)
    return decode_file(path, *args, **kwargs)
