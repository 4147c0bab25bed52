"""Putting weight files into a model: matched by name, checked by shape, then read into place.

A model is first built on the meta device, without memory. `match` compares a file with it and reads
no data (what `doctor` uses). `load` then reads each tensor once, straight into its precision and
device, so that no second copy of the weights exists in memory.
"""

from __future__ import annotations

import logging
import math

import torch
from torch import Tensor, nn

from video_llama.models.audio_encoder import resize_positions
from video_llama.models.video_llama import VideoLlama
from video_llama.models.weights.files import MappedPages, WeightFile, open_weights
from video_llama.models.weights.names import (
    LOGIT_SCALE,
    group_of,
    not_needed_reason,
    original_name,
)
from video_llama.models.weights.report import LoadReport, ValueCheck, WeightSource
from video_llama.models.weights.save import Manifest
from video_llama.types import WeightsError

logger = logging.getLogger(__name__)


def targets_of(model: nn.Module) -> dict[str, Tensor]:
    """Map original names to what a file can fill: parameters, and the one buffer that counts."""
    targets: dict[str, Tensor] = {original_name(n): p for n, p in model.named_parameters()}
    return targets | {n: buffer for n, buffer in model.named_buffers() if n == LOGIT_SCALE}


def open_source(source: WeightSource) -> WeightFile:
    """Open the file of a configuration key, which errors name."""
    try:
        return open_weights(source.path)
    except WeightsError as error:
        raise WeightsError(f"{source.key}: {error}") from error


def match(model: VideoLlama, source: WeightSource, file: WeightFile) -> LoadReport:
    """Compare a file with a model by names and shapes; reads no data."""
    # Every name of the file ends in exactly one list of the report: nothing is ignored silently.
    targets = targets_of(model)
    report = LoadReport(source, manifest=Manifest.of_file(file))
    prefix = _prefix(source, file)
    for key, shape in file.shapes.items():
        name = prefix + key
        target = targets.get(name)
        if target is None:
            if reason := not_needed_reason(name) or _absent_part(name, targets):
                report.not_needed[reason] += 1
            else:
                report.unexpected.append(name)
        elif source.groups and group_of(name) not in source.groups:
            report.not_needed["other parts"] += 1
        elif key in file.unfit:
            report.wrong_shape.append(f"{name} {file.unfit[key]}")
        elif shape != tuple(target.shape) and not _resizable(name, shape, tuple(target.shape)):
            report.wrong_shape.append(
                f"{name} has shape {list(shape)} in the file and {list(target.shape)} in the "
                f"model; {_likely_cause(name, shape, tuple(target.shape))}"
            )
        else:
            report.loaded.append(name)
    # A file holds all of a group or nothing of it, so a started group says what should be there.
    expected: set[str | None] = {*source.groups} or report.groups
    present = {*report.loaded, LOGIT_SCALE}
    report.missing = sorted(
        name for name in targets if group_of(name) in expected and name not in present
    )
    return report


def _prefix(source: WeightSource, file: WeightFile) -> str:
    """Return what the names of a file lack: nothing where it holds more than this part."""
    return "" if any(name.startswith(source.prefix) for name in file.shapes) else source.prefix


def load(model: VideoLlama, source: WeightSource, device: torch.device) -> LoadReport:
    """Read a file into a model.

    A tensor whose precision is already right is used where it lies in the memory-mapped file;
    trainable ones are copied, so that training never writes to the mapping.

    Raises:
        WeightsError: the file cannot be read, does not fit, has values that are not finite, or
            nothing but zeros for a part.
    """
    # Everything that can be told from names and shapes is told before the first value is read.
    file = open_source(source)
    report = match(model, source, file)
    report.check(model.settings, model.language_model.config)
    holders = {original_name(name): name for name, _ in model.named_parameters()}
    pages = MappedPages(source.path)
    values = ValueCheck(f"{source.key}: {source.path}")
    prefix = _prefix(source, file)
    for name in report.loaded:
        tensor = file.tensor(name[len(prefix) :])
        values.add(name, tensor)
        if name == LOGIT_SCALE:
            model.get_buffer(name).copy_(tensor)
        else:
            placed = _assign(model, holders[name], tensor, device)
            # A converted tensor leaves pages of the file behind, which count as memory until then.
            if placed.data_ptr() != tensor.data_ptr():
                pages.release(tensor)
    values.finish()
    logger.info("%s", report)
    return report


def _assign(model: nn.Module, name: str, tensor: Tensor, device: torch.device) -> Tensor:
    module_name, _, leaf = name.rpartition(".")
    module = model.get_submodule(module_name)
    old = module.get_parameter(leaf)
    if tensor.shape != old.shape:  # patch positions of another picture size
        tensor = resize_positions(tensor, *(_grid(x.shape) for x in (tensor, old)))
    # A trained tensor is always copied: an optimiser must not write into the mapped file.
    target = old.device if old.device.type != "meta" else device
    placed = tensor.to(target, old.dtype, copy=old.requires_grad)
    module.register_parameter(leaf, nn.Parameter(placed, requires_grad=old.requires_grad))
    return placed


def _absent_part(name: str, targets: dict[str, Tensor]) -> str | None:
    """Return a reason for names of a part that this configuration does not build."""
    # A whole-model file may be given to a model without audio branch.
    group = group_of(name)
    if group is None or any(group_of(target) == group for target in targets):
        return None
    return f"the part {group}, which this configuration does not build"


def _grid(shape: torch.Size) -> tuple[int, int]:
    side = math.isqrt(shape[1] - 1)
    return side, side


def _resizable(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether these are patch positions of a square picture at another size."""
    # Only these are made for a picture size; any other difference is a file of another kind.
    if not name.endswith(("visual_encoder.pos_embed", "vision.pos_embedding_helper.pos_embed")):
        return False
    if len(shape) != 3 or shape[1] < 2 or shape[2] != wanted[2]:
        return False
    return all(math.isqrt(s[1] - 1) ** 2 == s[1] - 1 for s in (shape, wanted))


_LLM_WIDTHS = {4096: "7B", 5120: "13B"}


def _likely_cause(name: str, shape: tuple[int, ...], wanted: tuple[int, ...]) -> str:
    if len(shape) != len(wanted):
        return "the file is of another kind or damaged"
    if "llama_proj" in name or name.startswith("llama_model."):
        theirs, ours = (_LLM_WIDTHS.get(s[0], f"{s[0]}-wide") for s in (shape, wanted))
        return (
            f"likely a file for a {theirs} LLM with a {ours} LLM in model.llama_model: "
            "take the file and the LLM of one size"
        )
    # Where the widths agree, the number of queries or positions differs: one setting to change.
    settings = {
        "video_query_tokens": "model.num_video_query_token",
        "audio_query_tokens": "model.num_audio_query_token",
        "query_tokens": "model.num_query_token",
        "video_frame_position_embedding.": "model.max_frame_pos",
        "audio_position_embedding.": "model.max_audio_clips",
    }
    for start, key in settings.items():
        if name.startswith(start) and shape[-1] == wanted[-1]:
            axis = 0 if name.endswith("embedding.weight") else 1
            return f"set {key} to {shape[axis]}, as in the file"
    sections = {
        "visual_encoder.": "model.vit_config and model.image_size",
        "ln_vision.": "model.vit_config",
        "audio_encoder.": "model.imagebind_config",
    }
    for start, key in sections.items():
        if name.startswith(start):
            return f"the sizes in {key} are not those of the file"
    return "the sizes in model.qformer_config are not those of the file"
