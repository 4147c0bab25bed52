"""The cache of frozen features of a run: what it is filed under, and how it is filled."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from video_llama.config import Config
from video_llama.datasets.feature_cache import FeatureCache, Features
from video_llama.models.video_llama import VideoLlama
from video_llama.types import Batch, CachedFeatures, ConfigError

FORMAT = 1
"""Raised when the transforms of the media or the encoders compute something else."""


def open_feature_cache(cfg: Config, model: VideoLlama) -> FeatureCache | None:
    """The cache of `run.feature_cache`; None where there is none.

    The branches have a folder each in it, because their encoders differ.

    Args:
        cfg: of the run.
        model: with its weights.

    Raises:
        ConfigError: nothing trains or an encoder does, or the features there are of other weights.
    """
    if cfg.run.feature_cache is None:
        return None
    settings = cfg.model
    if settings.trained_branch is None:
        raise ConfigError("run.feature_cache: given, but no branch trains; set it to null")
    folder = Path(cfg.run.feature_cache)
    if settings.trained_branch == "audio":
        assert model.audio_encoder is not None, "the branch that trains has its encoder"
        parts: list[nn.Module] = [model.audio_encoder]
        sizes: dict[str, Any] = asdict(settings.imagebind_config)
        sizes["audio_feature_norm"] = settings.audio_feature_norm
        return FeatureCache(folder / "imagebind", _key(parts, sizes))
    if not (settings.freeze_vit and settings.freeze_qformer):
        raise ConfigError(
            "run.feature_cache: given, but model.freeze_vit or model.freeze_qformer is false: "
            "features of what trains cannot be kept; set run.feature_cache to null"
        )
    if sounding := [n for n, d in cfg.datasets.items() if d.data_type.startswith("audio")]:
        raise ConfigError(
            f"run.feature_cache: given, but the video branch trains and datasets.{sounding[0]} is "
            "of sounds; leave it out, or set run.feature_cache to null"
        )
    assert model.vision_encoder is not None, "the branch that trains has its encoder"
    assert model.frame_qformer is not None, "the branch that trains has its encoder"
    sizes = asdict(settings.vit_config) | asdict(settings.qformer_config)
    return FeatureCache(
        folder / "frame_qformer", _key([model.vision_encoder, model.frame_qformer], sizes)
    )


def with_features(
    batches: Iterable[Batch], cache: FeatureCache | None, model: VideoLlama
) -> Iterator[Batch]:
    """Batches with features in the place of media; what the cache has not, is computed and kept.

    Always item by item: what is computed in batches depends in the last bit on who is in them, and
    a run that is resumed would meet its items in others.

    Args:
        batches: of loaders that know the cache.
        cache: None leaves the batches as they are.
        model: whose encoders compute what is missing.
    """
    if cache is None:
        yield from batches
        return
    try:
        for batch in batches:
            if batch.cached is None:
                yield batch
                continue
            features = _complete(batch, batch.cached, cache, model)
            if model.device.type == "cuda":
                features = features.pin_memory()
            without = replace(batch, pixel_values=None, audio_values=None)
            yield replace(without, features=features, cached=None)
    finally:
        cache.flush()


def _complete(
    batch: Batch, cached: CachedFeatures, cache: FeatureCache, model: VideoLlama
) -> Tensor:
    """(B, T, Q, D) float16."""
    there = iter(cached.values if cached.values is not None else ())
    rows, number = [], 0
    for key, seconds, is_there in zip(cached.keys, cached.seconds, cached.is_there, strict=True):
        if is_there:
            rows.append(next(there))
            continue
        found = cache.find(key) if key else None  # computed since the batch was loaded?
        if found is None:
            found = Features(_encoded(batch, number, model), tuple(seconds))
            if key:
                cache.put(key, found)
        rows.append(found.values)
        number += 1
    return torch.stack(rows)


@torch.no_grad()
def _encoded(batch: Batch, number: int, model: VideoLlama) -> Tensor:
    """(T, Q, D) float16, on the host, of one of the items whose media a batch holds."""
    pixels, sound = (
        None if values is None else values[number : number + 1]
        for values in (batch.pixel_values, batch.audio_values)
    )
    one = replace(batch, pixel_values=pixels, audio_values=sound)
    return model.frozen_features(one)[0].to(torch.float16).cpu()


def _key(parts: Sequence[nn.Module], sizes: dict[str, Any]) -> dict[str, Any]:
    """What a folder of features is filed under."""
    return {"format": FORMAT, "weights": _digest(parts), **sizes}


def _digest(parts: Sequence[nn.Module]) -> str:
    """A hash of names, types and values of all weights."""
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        for name, tensor in sorted(part.state_dict().items()):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            content = tensor.detach().cpu().contiguous()
            digest.update(content.flatten().view(torch.uint8).numpy())
    return digest.hexdigest()
