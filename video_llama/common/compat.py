"""Make torchvision and torchaudio importable beside a CPU build of torch.

The wheels of torchvision and torchaudio on PyPI are built for CUDA. Beside a CPU torch their native
libraries cannot be loaded, and then `import torchvision`, `import timm`, `import torchaudio` and
every model class of transformers fail, although this package needs nothing native of the two: its
transforms and spectrograms are plain torch. Importing this module puts two small stand-ins in
place of what is missing. Where the native libraries load, it does nothing.

A module that imports one of those packages therefore begins its imports with
`import video_llama.common.compat`; the import sorter keeps that line in front.
"""

from __future__ import annotations

import contextlib
import importlib.util
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import NoReturn

import torch

_TORCHVISION_OPS = {
    # torchvision describes the output shapes of these two at import, by their names. All its other
    # operators are looked up when they are called.
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}

_KEPT_ALIVE: list[torch.library.Library] = []
"""Operators vanish with the `Library` object that defined them."""


@cache
def apply() -> tuple[str, ...]:
    """Put the stand-ins in place where they are needed; runs once, at the import of this module.

    Returns:
        The packages that got one: a subset of `("torchvision", "torchaudio")`.
    """
    replaced = []
    torchvision = _package_folder("torchvision")
    if torchvision and not any(map(_loads, torchvision.glob("_C*"))):
        _define_torchvision_operators()
        replaced.append("torchvision")
    torchaudio = _package_folder("torchaudio")
    if torchaudio and not _torchaudio_loads(torchaudio):
        sys.modules["torchaudio._extension"] = _torchaudio_extension()
        replaced.append("torchaudio")
    return tuple(replaced)


def _package_folder(name: str) -> Path | None:
    """Find the folder of a package without importing it; None where it is not installed."""
    spec = importlib.util.find_spec(name)
    return Path(spec.origin).parent if spec and spec.origin else None


def _loads(library: Path) -> bool:
    """Return whether torch can load a native library (a second time costs nothing)."""
    with contextlib.suppress(OSError):
        torch.ops.load_library(library)
        return True
    return False


def _torchaudio_loads(folder: Path) -> bool:
    """Return whether `import torchaudio` would succeed: it also wants the CUDA release of torch."""
    if not all(map(_loads, (folder / "lib").glob("_torchaudio*"))):
        return False
    if not hasattr(torch.ops._torchaudio, "cuda_version"):
        return True
    built_for: int | None = torch.ops._torchaudio.cuda_version()  # 13020 is CUDA 13.2
    if built_for is None or torch.version.cuda is None:
        return True
    return f"{built_for // 1000}.{built_for % 1000 // 10}" == torch.version.cuda


def _define_torchvision_operators() -> None:
    library = torch.library.Library("torchvision", "FRAGMENT")
    _KEPT_ALIVE.append(library)
    for name, schema in _TORCHVISION_OPS.items():
        if not hasattr(torch.ops.torchvision, name):
            library.define(schema)


def _torchaudio_extension() -> ModuleType:
    """Make the module that torchaudio asks for its native library; it says that there is none."""
    module = ModuleType("torchaudio._extension", "Stand-in of video_llama.common.compat.")
    vars(module).update(
        _IS_TORCHAUDIO_EXT_AVAILABLE=False,
        _IS_ALIGN_AVAILABLE=False,
        _load_lib=lambda lib: False,
        fail_if_no_align=_unavailable,
    )
    return module


def _unavailable(function: Callable[..., object]) -> Callable[..., NoReturn]:
    def fail(*args: object, **kwargs: object) -> NoReturn:
        raise RuntimeError(
            f"torchaudio.{function.__name__} needs torchaudio's native library, which does not "
            "load beside this build of torch"
        )

    return fail


apply()
