"""The arithmetic of a run: mixed precision where the device gains from it."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Literal

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs
from accelerate.utils import ProjectConfiguration

from video_llama.runners.settings import RunSettings

logger = logging.getLogger(__name__)

MixedPrecision = Literal["no", "bf16", "fp16"]


def mixed_precision(*, amp: bool, device: torch.device) -> MixedPrecision:
    """What `run.amp` means on a device.

    Args:
        amp: whether mixed precision is wanted.
        device: where the run is.

    Returns:
        "bf16" where the device computes it; "fp16" (with a gradient scaler) on other GPUs; "no" on
        CPUs, most of which only emulate bf16 (and some virtual ones announce instructions for it
        that end the process).
    """
    if not amp:
        return "no"
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    if device.type == "mps":
        return "bf16"
    logger.info("run.amp has no effect on %s: computing in fp32", device.type)
    return "no"


def build_accelerator(settings: RunSettings, *, device: torch.device, folder: Path) -> Accelerator:
    """Accelerate's part of a run: device, DDP, mixed precision, accumulation and tracker.

    Args:
        settings: `amp` and `accum_grad_iters` are read.
        device: of this process, from `World`.
        folder: of the run, where the tracker writes.
    """
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=mixed_precision(amp=settings.amp, device=device),
        gradient_accumulation_steps=settings.accum_grad_iters,
        log_with="tensorboard",
        project_config=ProjectConfiguration(project_dir=str(folder), logging_dir=str(folder)),
        kwargs_handlers=[
            # Every trained parameter takes part in every step, and there are no buffers. A static
            # graph has to begin with a step that synchronises, which accumulation does not.
            DistributedDataParallelKwargs(
                find_unused_parameters=False,
                static_graph=settings.accum_grad_iters == 1,
                gradient_as_bucket_view=True,
            )
        ],
    )
