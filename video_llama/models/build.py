"""From settings to a model with weights: build shapes, read the files, initialise the rest."""

from __future__ import annotations

import contextlib
import logging
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path
from typing import Any

import video_llama.common.compat

import torch
from torch import nn
from transformers import LlamaForCausalLM

from video_llama.models.audio_encoder import ImageBind
from video_llama.models.language_model import build_language_model
from video_llama.models.lora import add_adapter
from video_llama.models.qformer import audio_branch, frame_qformer, video_branch
from video_llama.models.settings import ModelSettings
from video_llama.models.video_llama import VideoLlama
from video_llama.models.vision_encoder import VisionEncoder
from video_llama.models.weights.load import load, match, open_source
from video_llama.models.weights.names import (
    GROUPS,
    LOGIT_SCALE,
    group_of,
    original_name,
    trainable_prefixes,
)
from video_llama.models.weights.report import WeightSource
from video_llama.text.tokenizer import load_tokenizer
from video_llama.types import WeightsError

logger = logging.getLogger(__name__)

SOURCE_KEYS = {
    "vision_encoder": "model.vit_ckpt",
    "vision_norm": "model.q_former_model",
    "frame_qformer": "model.q_former_model",
    "video_branch": "model.ckpt",
    "video_proj": "model.ckpt",
    "audio_encoder": "model.imagebind_ckpt_path",
    "audio_branch": "model.ckpt_2",
    "language_model": "model.llama_model",
}
"""The configuration key that usually brings each group of weights, for errors."""

VISION_GROUPS = {"vision_encoder", "vision_norm", "frame_qformer"}
"""The groups that training the audio branch does not need."""


def build_video_llama(
    settings: ModelSettings,
    *,
    device: str,
    seed: int,
    llm_device: str | None = None,
    audio_on_demand: bool = False,
) -> VideoLlama:
    """Build a model with its weights, in eval mode.

    Args:
        device: torch device; "meta" makes shapes only and opens no weight file.
        seed: of the random values that fresh parts start from.
        llm_device: where the language model goes, if it goes elsewhere.
        audio_on_demand: read `imagebind_ckpt_path` at the first sound, for answers without any.

    Raises:
        ConfigError: a folder or package is missing.
        WeightsError: a file does not fit, or a part has no file and may not be random.
    """
    # First the shapes, without memory: the language model reads its own folder and brings its
    # weights, all other parts are filled from files afterwards.
    target, folder = torch.device(device), Path(settings.llama_model)
    shapes_only = target.type == "meta"
    has_tokenizer = not shapes_only or (folder / "tokenizer.model").is_file()
    tokenizer = load_tokenizer(folder) if has_tokenizer else None
    language_model = build_language_model(settings, torch.device(llm_device or device))
    with torch.device("meta"):
        model = VideoLlama(
            settings, language_model=language_model, tokenizer=tokenizer, device_type=target.type
        )
    if shapes_only:
        return model
    # Later files win over earlier ones. What none of them fills gets random values, if it may.
    sources = weight_sources(settings)
    lazy = [s for s in sources if audio_on_demand and s.groups == ("audio_encoder",)]
    model.load_reports = [load(model, source, target) for source in sources if source not in lazy]
    _drop_unused(model)
    # Another file may have brought it already, and would have won.
    lazy = lazy if "audio_encoder" in _empty_groups(model) else []
    _initialise(model, target, seed, {group for source in lazy for group in source.groups})
    # The language model is already where it belongs, maybe spread over several devices.
    for part in model.children():
        if part is model.audio_encoder and lazy:
            _load_lazily(model, part, lazy[0], target)
        elif part is not language_model:
            part.to(target)
    # Last, because it renames the layers that it stands beside.
    with _seeded(seed, "lora"):
        add_adapter(language_model, settings)
    return model


def weight_sources(settings: ModelSettings) -> list[WeightSource]:
    """List the weight files that the settings name; where two hold a tensor, the later one wins."""
    imagebind = settings.imagebind_file if settings.equip_audio_branch else None
    named = [
        ("vit_ckpt", settings.vit_ckpt, "visual_encoder.", ("vision_encoder",)),
        ("q_former_model", settings.q_former_model, "", ("vision_norm", "frame_qformer")),
        ("llama_proj_model", settings.llama_proj_model, "", ("video_proj",)),
        ("imagebind_ckpt_path", imagebind, "audio_encoder.", ("audio_encoder",)),
        ("ckpt", settings.ckpt, "", ()),
        ("ckpt_2", settings.ckpt_2, "", ()),
    ]
    return [
        WeightSource(f"model.{key}", Path(path), prefix, groups)
        for key, path, prefix, groups in named
        if path
    ]


def fresh_groups(settings: ModelSettings) -> set[str]:
    """Return the groups that need no file: what is trained, and what that training does not use."""
    if settings.random_init:
        return set(GROUPS)
    # A trained branch may start fresh: that is what stage 1 does.
    trainable = trainable_prefixes(settings)
    fresh = {group for group, prefixes in GROUPS.items() if set(prefixes) <= set(trainable)}
    if settings.trained_branch == "audio":
        fresh |= {"video_branch", "video_proj"}
    return fresh


def missing_groups(settings: ModelSettings, filled: Set[str | None]) -> Iterator[str]:
    """Yield a message for every group of weights that no file has and that may not be random."""
    optional = fresh_groups(settings)
    # A part that is not built needs nothing; the vision parts come together or not at all.
    if not settings.equip_audio_branch:
        optional |= {"audio_encoder", "audio_branch"}
    if settings.trained_branch == "audio" and not VISION_GROUPS & filled:
        optional |= VISION_GROUPS
    for group in GROUPS:
        if group not in filled and group not in optional:
            yield (
                f"no file has the weights of {group}; give it in {SOURCE_KEYS[group]}, or set "
                "model.random_init=true for random ones"
            )


def _empty_groups(model: VideoLlama) -> set[str | None]:
    return {
        group_of(original_name(name))
        for name, parameter in model.named_parameters()
        if parameter.is_meta
    }


def _drop_unused(model: VideoLlama) -> None:
    """Remove the vision encoder where the audio branch trains and no file is given for it."""
    if model.settings.trained_branch == "audio" and _empty_groups(model) >= VISION_GROUPS:
        logger.info("training the audio branch: no vision encoder is loaded")
        model.vision_encoder = model.frame_qformer = None


def _initialise(model: VideoLlama, device: torch.device, seed: int, lazy: Set[str]) -> None:
    """Give random values to what no file has filled, or will, where that is allowed."""
    filled = ({*GROUPS} - _empty_groups(model)) | lazy
    for problem in missing_groups(model.settings, filled):
        raise WeightsError(problem)
    settings, config = model.settings, model.language_model.config
    fresh: dict[str, Callable[[], nn.Module]] = {
        "language_model": lambda: LlamaForCausalLM(config),
        "vision_encoder": lambda: VisionEncoder(settings),
        "frame_qformer": lambda: frame_qformer(settings),
        "video_branch": lambda: video_branch(settings, config.hidden_size),
        "audio_encoder": lambda: ImageBind(settings.imagebind_config),
        "audio_branch": lambda: audio_branch(settings, config.hidden_size),
    }
    for name, build in fresh.items():
        part = getattr(model, name)
        if name in lazy or part is None:
            continue
        if any(parameter.is_meta for parameter in part.parameters()):
            logger.info("%s: random values, seed %d", name, seed)
            model.random_modules.append(name)
            # One part at a time is built a second time, with memory, and its values moved over.
            with _seeded(seed, name):
                _fill(part, build(), device)


@contextlib.contextmanager
def _seeded(seed: int, name: str) -> Iterator[None]:
    """Draw random values that depend on the seed and the part's name alone."""
    # A part has the same values whichever others are loaded from files.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + zlib.crc32(name.encode()))
        yield


def _fill(part: nn.Module, fresh: nn.Module, device: torch.device) -> None:
    # Only what is still empty is filled: a file may have brought some groups of the part.
    values = fresh.state_dict()
    filled = {
        name: values[name].to(device, parameter.dtype)
        for name, parameter in part.named_parameters()
        if parameter.is_meta
    }
    part.load_state_dict(filled, strict=False, assign=True)


def _load_lazily(
    model: VideoLlama, part: nn.Module, source: WeightSource, device: torch.device
) -> None:
    """Read the weights of a part, which is still on the meta device, at its first forward."""
    # Names and shapes are checked now, so that a wrong file is found at the start.
    match(model, source, open_source(source)).check(model.settings, model.language_model.config)
    lock = threading.Lock()  # the first sounds of two users may come at the same time

    def read_weights(*_: Any) -> None:
        with lock, torch.inference_mode(False):
            if not any(parameter.is_meta for parameter in part.parameters()):
                return  # another thread has read them while this one waited
            logger.info("%s: needed for the first time, reading %s", source.key, source.path)
            # A branch file that was read before may have brought this one value of its own.
            later = any(LOGIT_SCALE in report.loaded for report in model.load_reports)
            scale = model.get_buffer(LOGIT_SCALE).clone() if later else None
            model.load_reports.append(load(model, source, device))
            if scale is not None:
                model.get_buffer(LOGIT_SCALE).copy_(scale)
            part.to(device)
            handle.remove()

    handle = part.register_forward_pre_hook(read_weights)


def compile_blocks(model: VideoLlama, names: Sequence[str]) -> None:
    """Compile the blocks of some parts (of `COMPILED_MODULES`) at their first use.

    Blocks of one class share their code, so that a deep part takes no longer than a shallow one.
    The names of the parameters do not change.
    """
    # The blocks of a transformer are its repeated code; what lies around them is not worth it.
    qformers = (model.frame_qformer, model.video_branch, model.audio_branch)
    blocks: dict[str, list[tuple[nn.Module | None, str]]] = {
        "language_model": [(model.language_model, "model.layers")],
        "vision_encoder": [(model.vision_encoder, "vit.blocks")],
        "qformers": [(part, "qformer.encoder.layer") for part in qformers],
    }
    for part, where in (place for name in names for place in blocks[name]):
        for block in part.get_submodule(where).children() if part is not None else ():
            block.compile()
