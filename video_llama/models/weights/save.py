"""Saving the trained parameters of a branch under the original's names, with their manifest.

The manifest says what a branch file is, so that a model that cannot use it refuses it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from video_llama.common.io import atomic_write
from video_llama.models.settings import ModelSettings
from video_llama.models.weights.files import WeightFile
from video_llama.types import WeightsError

if TYPE_CHECKING:  # torch alone is much quicker to import
    from transformers import LlamaConfig

FORMAT = "video-llama-branch"
"""Marks the metadata of a branch file."""

ADAPTER_WEIGHTS = "adapter_model.safetensors"
"""File of an adapter's folder, as PEFT names it."""
MERGED = "video_llama_adapter"
"""Key of a LLaMA's config.json with the hash of the adapter that was merged into its weights."""

ABLATIONS = ("video_frame_positions", "video_fusion")
"""Settings that make the video branch another one."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a branch file is: stored as text beside its tensors."""

    branch: Literal["video", "audio"]
    """Which branch was trained."""
    stage: int
    """1: captions; 2: instructions."""
    template: str
    """Conversation format that it was trained with."""
    llm_width: int
    """Width of the language model that its projection feeds."""
    llm_layers: int
    """Depth of that language model."""
    frames: int
    """Frames per clip in training."""
    clips: int
    """Sound segments per item in training."""
    num_query_token: int
    """Queries of the frame Q-Former."""
    num_branch_query_token: int
    """Queries of the branch: positions of the language model per item."""
    step: int
    """Training steps that it has seen."""
    frozen_hash: str
    """Hash of the configuration of the frozen parts."""
    video_frame_positions: bool = True
    """Setting of that name; true for the audio branch, which it does not concern."""
    video_fusion: str = "qformer"
    """Setting of that name; qformer for the audio branch."""
    adapter: str = ""
    """Hash of the LoRA adapter that the language model had; empty: none."""

    def to_metadata(self) -> dict[str, str]:
        """Return the text values that a safetensors file can hold."""
        return {"format": "pt", "kind": FORMAT, "manifest": json.dumps(asdict(self))}

    @classmethod
    def of_file(cls, file: WeightFile) -> Manifest | None:
        """Read the manifest of a file; None for a file that is not one of ours.

        Raises:
            WeightsError: it is one of ours, but damaged or of another version.
        """
        # Later versions may add fields: unknown ones are ignored, missing ones have defaults.
        # A .pth made from a branch file carries the same text beside its "model" entry.
        metadata = file.metadata or file.extras
        if metadata.get("kind") != FORMAT:
            return None
        try:
            values = json.loads(metadata["manifest"])
            known = {field.name for field in fields(cls)}
            manifest = cls(**{key: value for key, value in values.items() if key in known})
            manifest._check()
        except (AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise WeightsError(
                f"{file.path}: its manifest is damaged ({error}); save it again"
            ) from error
        return manifest

    def _check(self) -> None:
        if self.branch not in ("video", "audio"):
            raise ValueError(f"branch {self.branch!r}")
        kinds: dict[str, Any] = {"int": int, "str": str, "bool": bool}
        for declared in fields(self):
            value: Any = getattr(self, declared.name)
            kind = kinds.get(str(declared.type), str)
            if type(value) is not kind or (kind is int and value < 0):
                raise ValueError(f"{declared.name} {value!r}")


def describe_branch(
    settings: ModelSettings, llm: LlamaConfig, *, stage: int, frames: int, clips: int, step: int
) -> Manifest:
    """Describe the branch that trains, after `step` steps of stage 1 (captions) or 2.

    `frames` per clip and `clips` (sound segments) per item are those of the data.
    """
    branch = settings.trained_branch
    if branch is None:
        raise ValueError("no branch trains, so there is nothing to describe")
    # The ablations make the video branch another one; the audio branch does not know them.
    audio = branch == "audio"
    return Manifest(
        branch=branch,
        stage=stage,
        template=settings.template,
        llm_width=llm.hidden_size,
        llm_layers=llm.num_hidden_layers,
        frames=frames,
        clips=clips,
        num_query_token=settings.num_query_token,
        num_branch_query_token=(
            settings.num_audio_query_token if audio else settings.num_video_query_token
        ),
        step=step,
        frozen_hash=frozen_hash(settings, llm),
        video_frame_positions=audio or settings.video_frame_positions,
        video_fusion="qformer" if audio else settings.video_fusion,
    )


def frozen_hash(settings: ModelSettings, llm: LlamaConfig) -> str:
    """Hash the settings that shape the inputs of the trained branches."""
    # Rates, seeds and file names do not belong here: only what another input would come from.
    shape = {
        "image_size": settings.image_size,
        "vit": asdict(settings.vit_config),
        "qformer": asdict(settings.qformer_config),
        "num_query_token": settings.num_query_token,
        "imagebind": asdict(settings.imagebind_config),
        "llm": [llm.hidden_size, llm.num_hidden_layers],
    }
    return hashlib.sha256(json.dumps(shape, sort_keys=True).encode()).hexdigest()[:16]


def mismatch(manifest: Manifest, settings: ModelSettings, llm: LlamaConfig) -> str | None:
    """Say why a branch file cannot be used in a model, and what to change; None if it can."""
    # What no tensor's shape would tell, or only with a message that nobody understands.
    if manifest.branch == "audio" and not settings.equip_audio_branch:
        return (
            "it holds the audio branch, but model.equip_audio_branch is false; set it to true, or "
            "give a file of the video branch"
        )
    # The hash of the frozen parts only informs: the shapes of the tensors decide.
    if (manifest.llm_width, manifest.llm_layers) != (llm.hidden_size, llm.num_hidden_layers):
        return (
            f"it was trained with a language model {manifest.llm_width} wide and "
            f"{manifest.llm_layers} layers deep, but that of model.llama_model is "
            f"{llm.hidden_size} wide and {llm.num_hidden_layers} deep; give the language model or "
            "the branch of the other size"
        )
    if manifest.template != settings.template:
        return (
            f"it was trained with the template {manifest.template}, but the configuration has "
            f"{settings.template}; set model.model_type=pretrain_{manifest.template} and "
            "model.llama_model to its language model"
        )
    adapter = _adapter_mismatch(manifest, settings, llm)
    if adapter:
        return adapter
    for key in ABLATIONS if manifest.branch == "video" else ():
        theirs, ours = (str(getattr(part, key)).lower() for part in (manifest, settings))
        if theirs != ours:
            return (
                f"it was trained with model.{key}={theirs}, but the configuration has {ours}; set "
                f"model.{key}={theirs}, or give another file"
            )
    return None


def _adapter_mismatch(manifest: Manifest, settings: ModelSettings, llm: LlamaConfig) -> str | None:
    """Say why a branch does not go with the adapter of a configuration; None if it does."""
    given = settings.lora_ckpt
    path = Path(given) / ADAPTER_WEIGHTS if given else None
    there: str = getattr(llm, MERGED, "")
    if path and path.is_file():
        there = hashlib.sha256(path.read_bytes()).hexdigest()
    if there == manifest.adapter:
        return None
    if not manifest.adapter:
        return (
            "it was trained without a LoRA adapter, but "
            + (f"model.lora_ckpt is {given}" if given else "the LLaMA has one merged into it")
            + "; leave the adapter away, or give the branch that was trained with it"
        )
    return (
        "it was trained with a LoRA adapter on the language model"
        + (f", and that in {given} is another one" if given else "")
        + "; set model.lora_ckpt to the folder `adapter` beside it"
    )


def save_branch(parameters: Iterable[tuple[str, Tensor]], path: Path, manifest: Manifest) -> None:
    """Write the trainable parameters, atomically."""
    save_tensors(dict(parameters), path, manifest.to_metadata())


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write tensors with text metadata as safetensors, atomically."""
    # Tied weights and views share memory, which the format has no way to say.
    owners: set[int] = set()
    plain = {n: _with_own_memory(t.detach().cpu(), owners) for n, t in tensors.items()}
    with atomic_write(path) as temporary:
        save_file(plain, temporary, metadata)


def save_pickle(content: Mapping[str, object], path: Path) -> None:
    """Write a torch file, atomically."""
    # Through a file of Python's, because torch's own writer does not say that a disk is full.
    with atomic_write(path) as temporary, temporary.open("wb") as file:
        torch.save(dict(content), file)


def _with_own_memory(tensor: Tensor, owners: set[int]) -> Tensor:
    """Copy a tensor that shares its memory: safetensors refuses two names for one memory."""
    shares = tensor.untyped_storage().nbytes() != tensor.nbytes or tensor.data_ptr() in owners
    own = tensor.clone() if shares else tensor
    owners.add(own.data_ptr())
    return own.contiguous()
