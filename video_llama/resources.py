"""Where the files that ship with the project lie, in a checkout and in an installed wheel.

Torch-free and quick to import.
"""

from __future__ import annotations

from pathlib import Path

PACKAGE = Path(__file__).resolve().parent


def resource(name: str) -> Path:
    """A file or folder of the project, such as `eval_configs/tiny.yaml`.

    A wheel carries these under `video_llama/_data`; in a checkout they lie beside the package.

    Args:
        name: path relative to the project's root, with forward slashes.

    Raises:
        FileNotFoundError: neither place has it; the message names both.
    """
    candidates = [PACKAGE / "_data" / name, PACKAGE.parent / name]
    for path in candidates:
        if path.exists():
            return path
    raise FileNotFoundError(f"{name} is in neither place: {', '.join(map(str, candidates))}")


def package_file(name: str) -> Path:
    """The absolute path of package data, such as `presets/tiny/llama`; it need not exist.

    Args:
        name: path relative to the package, with forward slashes.
    """
    return PACKAGE / name


def default_config_path() -> Path:
    """The configuration that the commands use when none is given: the tiny preset."""
    return resource("eval_configs/tiny.yaml")
