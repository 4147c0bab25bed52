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
    plain: dict[str, Tensor] = {}
    owners: set[int] = set()
    for name, tensor in tensors.items():
        plain[name] = _with_own_memory(tensor.detach().cpu(), owners)
    with atomic_write(path) as temporary:
        save_file(plain, temporary, metadata)


def save_pickle(content: Mapping[str, object], path: Path) -> None:
    """Write a torch file, atomically."""
    # Through a file of Python's, because torch's own writer does not say that a disk is full.
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.save(dict(content), file)


def _with_own_memory(tensor: Tensor, owners: set[int]) -> Tensor:
    """The tensor, copied if it shares its memory: safetensors refuses two names for one memory."""
    shares = tensor.untyped_storage().nbytes() != tensor.nbytes or tensor.data_ptr() in owners
    own = tensor.clone() if shares else tensor
    owners.add(own.data_ptr())
    return own.contiguous()
