"""Build the model of a configuration on its device."""

from __future__ import annotations

import torch

from video_llama.config.schema import Config
from video_llama.models.build import build_video_llama
from video_llama.models.video_llama import VideoLlama
from video_llama.types import ConfigError


def build_model(cfg: Config, *, audio_on_demand: bool = False) -> VideoLlama:
    """Build the model of a configuration with its weights, in eval mode on `run.device`.

    Args:
        cfg: only `model`, `run.device` and `run.seed` are read.
        audio_on_demand: read ImageBind's file at the first sound; until then the encoder has no
            weights. For programs that answer; a model that is trained or saved needs all.

    Raises:
        ConfigError: a folder, package or device is missing.
        WeightsError: a weight file does not fit.
    """
    model = build_video_llama(
        cfg.model,
        device=resolve_device(cfg.run.device),
        seed=cfg.run.seed,
        audio_on_demand=audio_on_demand,
    )
    model.configuration = cfg
    return model


def resolve_device(name: str) -> str:
    """Return the torch device of `run.device`, if it is there; "auto" picks cuda, mps or cpu."""
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next((device for device, there in available.items() if there), "cpu")
    if not available.get(name.partition(":")[0], True):
        raise ConfigError(
            f"run.device: {name} given, but torch {torch.__version__} sees none on this machine; "
            "use run.device=auto or cpu"
        )
    return name
