"""Number formats by name, and what a device can do with them."""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from video_llama.models.settings import PrecisionName

logger = logging.getLogger(__name__)

_ISA_LIMIT = "ONEDNN_MAX_CPU_ISA"
_BF16_PRODUCT = (
    "import torch; x = torch.ones(64, 64, dtype=torch.bfloat16); torch.nn.functional.linear(x, x)"
)

_DTYPES: dict[PrecisionName, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}


@dataclass(frozen=True)
class Precision:
    """The number format that one frozen part is stored and computed in."""

    dtype: torch.dtype
    device_type: str
    """Where it runs: "cpu", "cuda", ..."""

    @classmethod
    def named(cls, name: PrecisionName, device_type: str) -> Precision:
        """Return the format called `name`, or the nearest one that `device_type` computes well.

        CPUs have no fast fp16 kernels (the original fails there), so fp16 becomes fp32 on them.
        """
        # One configuration serves GPUs and CPUs, so the name is lowered here and not refused.
        if name == "fp16" and device_type == "cpu":
            name = "fp32"
        if name == "bf16" and device_type == "cpu":
            avoid_broken_amx()
        return cls(_DTYPES[name], device_type)

    @contextlib.contextmanager
    def autocast(self) -> Iterator[None]:
        """Compute in this format whatever the caller's autocast says."""
        # autocast takes no fp32: leaving it means computing in what the weights are.
        reduced = self.dtype is not torch.float32
        dtype = self.dtype if reduced else None
        with torch.autocast(self.device_type, dtype=dtype, enabled=reduced):
            yield


@functools.cache
def avoid_broken_amx() -> None:
    """Keep bf16 off the processor's matrix unit (AMX) where it is announced but does not work.

    On some virtual machines the first product would kill the process without a message. So one is
    tried in a process of its own, and only where the unit is announced. oneDNN reads its limit at
    its first use.
    """
    # A limit that the user has set wins; elsewhere than on Linux no such machine is known.
    cpu = Path("/proc/cpuinfo")
    if _ISA_LIMIT in os.environ or not cpu.exists() or "amx_bf16" not in cpu.read_text():
        return
    probe = subprocess.run([sys.executable, "-c", _BF16_PRODUCT], capture_output=True, check=False)
    if probe.returncode:
        logger.warning("this machine announces AMX, which does not work: bf16 runs without it")
        os.environ[_ISA_LIMIT] = "AVX512_CORE_BF16"


def cast_floating(module: nn.Module, dtype: torch.dtype) -> None:
    """Store the floating-point parameters and buffers of `module` as `dtype`, in place.

    Tensor by tensor, so that no second copy of the module exists at any time.
    """
    # Through .data: the parameters stay the same objects, whoever holds them.
    for tensor in [*module.parameters(), *module.buffers()]:
        if tensor.is_floating_point() and tensor.dtype is not dtype:
            tensor.data = tensor.data.to(dtype)
