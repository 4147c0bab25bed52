"""`video-llama convert`: weights between the original's .pth and .safetensors."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from video_llama.models.weights.files import WeightFile, open_weights
from video_llama.models.weights.names import group_of, never_needed_reason
from video_llama.models.weights.save import FORMAT, save_pickle, save_tensors
from video_llama.types import RequestError, WeightsError

PREFIXES = ("", "visual_encoder.", "audio_encoder.")
"""What the names of the released files lack in front of the original's model names."""


def convert(source: Path, target: Path, *, force: bool = False) -> tuple[int, Counter[str]]:
    """Convert a .pth, .pt, .bin or .safetensors file.

    To .safetensors: everything that this project can use. To .pth: a file that the original loads.

    Returns:
        How many tensors were kept, and how many were left out, by reason.

    Raises:
        RequestError: `target` exists, is `source`, or has another ending.
        WeightsError: `source` cannot be read, holds nothing that is needed, or tensors that can be
            no weights.
    """
    if target.suffix not in (".safetensors", ".pth"):
        raise RequestError(f"{target}: OUT must end in .safetensors or .pth")
    if target.is_dir():
        raise RequestError(f"{target} is a folder; give the name of a file in it")
    if target.exists() and source.exists() and target.samefile(source):
        raise RequestError(f"{target} is the file to convert itself; give another name for OUT")
    if target.exists() and not force:
        raise RequestError(f"{target} exists; give another name, or --force to replace it")
    file = open_weights(source)
    prefix = prefix_of(file)
    dropped: Counter[str] = Counter()
    kept: list[str] = []
    for name in file.shapes:
        reason = never_needed_reason(prefix + name)
        if reason:
            dropped[reason] += 1
        elif name in file.unfit:
            raise WeightsError(f"{source}: {name} {file.unfit[name]}")
        else:
            kept.append(name)
    if not kept:
        raise WeightsError(f"{source} holds nothing that is needed, only {', '.join(dropped)}")
    tensors = {name: file.tensor(name) for name in kept}
    about = dict(file.metadata or {})
    about |= {key: str(file.extras[key]) for key in ("kind", "manifest") if key in file.extras}
    if target.suffix == ".safetensors":
        save_tensors(tensors, target, {"format": "pt", **about})
    else:
        manifest = about if about.get("kind") == FORMAT else {}
        # The original reads EVA's and ImageBind's files bare, all others in a "model" entry.
        save_pickle(tensors if prefix else {"model": tensors, **manifest}, target)
    return len(kept), dropped


def prefix_of(file: WeightFile) -> str:
    """Return what the names of a released file lack in front of the original's model names.

    It is the one under which most of its names belong to a part.
    """
    return max(PREFIXES, key=lambda prefix: sum(_is_known(prefix + name) for name in file.shapes))


def _is_known(name: str) -> bool:
    group = group_of(name)
    if group is None:
        return never_needed_reason(name) is not None
    # Every name is "known" under a prefix of a part: look at what follows it.
    inside = name.partition(".")[2]
    parts = {
        "vision_encoder": ("blocks", "patch_embed", "cls_token", "pos_embed", "norm", "head"),
        "audio_encoder": ("modality_",),
    }
    return group not in parts or inside.startswith(parts[group])
