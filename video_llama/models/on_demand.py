"""Weights that are read when they are first needed."""

from __future__ import annotations

import logging
import threading
from typing import Any

import torch
from torch import nn

from video_llama.models.video_llama import VideoLlama
from video_llama.models.weights import LOGIT_SCALE, WeightSource, load, match, open_source

logger = logging.getLogger(__name__)


def load_at_first_use(
    model: VideoLlama, part: nn.Module, source: WeightSource, device: torch.device
) -> None:
    """Let a part stay without weights until somebody calls it.

    Names and shapes of the file are checked at once, so that a wrong one is not found out late.

    Args:
        model: a `VideoLlama`; `part` is still on the meta device.
        part: what the file is for.
        source: its weight file.
        device: where the weights go.

    Raises:
        WeightsError: the file does not fit.
    """
    match(model, source, open_source(source)).check(model)
    guard = threading.Lock()

    def arrive(*_: Any) -> None:
        with guard, torch.inference_mode(False):
            if not any(parameter.is_meta for parameter in part.parameters()):
                return
            logger.info("%s: needed for the first time, reading %s", source.key, source.path)
            # A branch file that was read before may have brought this one value of its own.
            later = any(LOGIT_SCALE in report.loaded for report in model.load_reports)
            scale = model.get_buffer(LOGIT_SCALE).clone() if later else None
            model.load_reports.append(load(model, source, device))
            if scale is not None:
                model.get_buffer(LOGIT_SCALE).copy_(scale)
            part.to(device)
            handle.remove()

    handle = part.register_forward_pre_hook(arrive)
