"""What keeps a valid configuration from being trained or evaluated. Torch-free."""

from __future__ import annotations

from video_llama.config import Config
from video_llama.datasets.build_info import SPLITS
from video_llama.registry import suggestion
from video_llama.types import ConfigError


def check_trainable(cfg: Config) -> None:
    """Refuse a configuration that asks for no training or evaluation that there is.

    Args:
        cfg: of `load_config`.

    Raises:
        ConfigError: names the key, what was given and what is expected.
    """
    run, branch = cfg.run, cfg.model.trained_branch
    if not cfg.datasets:
        raise ConfigError("datasets: empty; name the data sets to train or evaluate on")
    if run.device == "meta":
        raise ConfigError("run.device: meta has no weights to train; use auto")
    for key in ("train_splits", "valid_splits", "test_splits"):
        for split in getattr(run, key):
            if split not in SPLITS:
                hint = suggestion(split, list(SPLITS))
                raise ConfigError(f"run.{key}: unknown split {split!r}; {hint}")
    if run.evaluate and not run.valid_splits + run.test_splits:
        raise ConfigError("run.evaluate: true, but run.valid_splits and run.test_splits are empty")
    if not run.evaluate and len(run.train_splits) != 1:
        raise ConfigError(f"run.train_splits: {run.train_splits} given, one split expected")
    if not run.evaluate and branch is None:
        raise ConfigError(
            "model.frozen_video_Qformer: true, and no other branch trains; set it to false for the "
            "video branch, or equip_audio_branch to true and frozen_audio_Qformer to false"
        )
    if run.fsdp and cfg.model.quantization != "none":
        raise ConfigError("run.fsdp: true given, but a quantised LLM cannot be sharded")
