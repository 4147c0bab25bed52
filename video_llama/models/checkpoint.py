"""Saving: the trained parameters of a branch under the original's names, with their manifest."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from video_llama.files import atomic_write
from video_llama.models.manifest import Manifest
from video_llama.models.video_llama import VideoLlama


def save_branch(model: VideoLlama, path: Path, manifest: Manifest) -> None:
    """Write the trainable parameters, atomically.

    Args:
        model: whose trainable parameters are saved, in their precision.
        path: a .safetensors file.
        manifest: of `describe_branch`.

    Raises:
        DiskFullError: no room; an older file of that name is as it was.
    """
    save_tensors(dict(model.trainable_parameters()), path, manifest.to_metadata())


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors with text metadata as safetensors, atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(plain, temporary, metadata)


def save_pickle(content: Mapping[str, object], path: Path) -> None:
    """Write a torch file, atomically."""
    with atomic_write(path) as temporary:
        torch.save(dict(content), temporary)
