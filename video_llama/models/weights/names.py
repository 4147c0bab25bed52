"""Parameter names: ours to the original's, what is trained, and what a foreign file may hold.

Pure functions on text. The original's names are those of every released file and of the
checkpoints that this project writes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from video_llama.models.settings import ModelSettings

_PREFIXES = (
    ("vision_encoder.vit.", "visual_encoder."),
    ("vision_encoder.norm.", "ln_vision."),
    ("frame_qformer.query_tokens", "query_tokens"),
    ("frame_qformer.qformer.", "Qformer.bert."),
    ("video_branch.query_tokens", "video_query_tokens"),
    ("video_branch.position_embedding.", "video_frame_position_embedding."),
    ("video_branch.qformer.", "video_Qformer.bert."),
    ("video_branch.proj.", "llama_proj."),
    ("audio_branch.query_tokens", "audio_query_tokens"),
    ("audio_branch.position_embedding.", "audio_position_embedding."),
    ("audio_branch.qformer.", "audio_Qformer.bert."),
    ("audio_branch.proj.", "audio_llama_proj."),
    ("audio_encoder.", "audio_encoder."),
    ("language_model.", "llama_model."),
)

_QFORMER = (
    ("bert.layernorm.", "bert.embeddings.LayerNorm."),
    (".attention.attention.", ".attention.self."),
    (".crossattention.attention.", ".crossattention.self."),
)

GROUPS = {
    "vision_encoder": ("visual_encoder.",),
    "vision_norm": ("ln_vision.",),
    "frame_qformer": ("Qformer.", "query_tokens"),
    "video_branch": ("video_Qformer.", "video_query_tokens", "video_frame_position_embedding."),
    "video_proj": ("llama_proj.",),
    "audio_encoder": ("audio_encoder.",),
    "audio_branch": (
        "audio_Qformer.",
        "audio_query_tokens",
        "audio_position_embedding.",
        "audio_llama_proj.",
    ),
    "language_model": ("llama_model.",),
}
"""The sets of weights that come together: a file holds all of a group or nothing of it."""

_ABOVE = "blocks and head above the features read"
_NOT_NEEDED = (
    ("text branch of the Q-Former", r"\w*Qformer\.bert\.embeddings\.(word|position)_embeddings\."),
    (
        "text branch of the Q-Former",
        r"\w*Qformer\.bert\.encoder\.layer\.\d+\.(intermediate|output)\.",
    ),
    ("heads of the Q-Former", r"\w*Qformer\.cls\."),
    ("constant buffers", r".*\.(position_ids|inv_freq)$"),
    (_ABOVE, r"visual_encoder\.(norm|fc_norm|head)\."),
    ("pre-training of EVA", r"visual_encoder\.(lm_head\.|mask_token$|rel_pos_bias)"),
    ("ImageBind's unused towers", r"audio_encoder\.modality_\w+\.(text|depth|thermal|imu)\."),
    ("BLIP-2's own language model", r"(t5_proj|t5_model|opt_proj|opt_model|llm_proj)\."),
    ("BLIP-2's first-stage heads", r"(vision_proj|text_proj|itm_head)\.|temp$"),
)

LOGIT_SCALE = "audio_encoder.modality_postprocessors.audio.1.log_logit_scale"
"""The one buffer of the released files that carries information: the norm of sound embeddings."""


@dataclass(frozen=True)
class ReleasedPart:
    """A part of the model that comes in a file of its own."""

    title: str
    """What it is."""
    public_name: str
    """How it is released."""
    source: str
    """Where it can be had."""


_HUB = "https://huggingface.co"
_OURS = f"{_HUB}/DAMO-NLP-SG/Video-LLaMA-2-7B-Finetuned"
_LAVIS = "https://github.com/salesforce/LAVIS (BLIP-2)"
PARTS = {
    "llama_model": ReleasedPart(
        "language model", "llama-2-7b-chat-hf/", f"{_HUB}/meta-llama/Llama-2-7b-chat-hf"
    ),
    "vit_ckpt": ReleasedPart("vision transformer", "eva_vit_g.pth", _LAVIS),
    "q_former_model": ReleasedPart("frame Q-Former", "blip2_pretrained_flant5xxl.pth", _LAVIS),
    "llama_proj_model": ReleasedPart(
        "first projection", "pretrained_minigpt4.pth", "https://github.com/Vision-CAIR/MiniGPT-4"
    ),
    "imagebind_ckpt_path": ReleasedPart(
        "ImageBind", "imagebind_huge.pth", "https://github.com/facebookresearch/ImageBind"
    ),
    "ckpt": ReleasedPart("video branch", "VL_LLaMA_2_7B_Finetuned.pth", _OURS),
    "ckpt_2": ReleasedPart("audio branch", "AL_LLaMA_2_7B_Finetuned.pth", _OURS),
}
"""Key of the `model` section to the part that it names."""


def original_name(name: str) -> str:
    """Return the original's state-dict key of one of our parameter names.

    Raises:
        KeyError: the name belongs to no part.
    """
    # No prefix is the start of another, so the first that fits is the only one.
    found = next((pair for pair in _PREFIXES if name.startswith(pair[0])), None)
    if found is None:
        raise KeyError(name)
    renamed = found[1] + name.removeprefix(found[0])
    if "Qformer.bert." in renamed:
        for ours, theirs in _QFORMER:
            renamed = renamed.replace(ours, theirs)
    return renamed


def group_of(original: str) -> str | None:
    """Return the group that an original name belongs to, or None for a name of no part."""
    return next((name for name, starts in GROUPS.items() if original.startswith(starts)), None)


def not_needed_reason(original: str) -> str | None:
    """Say why a key has no place in a model, or None if that is not known."""
    # Which blocks are surplus depends on the depth of the model.
    if original.startswith("visual_encoder.blocks."):
        return _ABOVE
    return never_needed_reason(original)


def never_needed_reason(original: str) -> str | None:
    """Say why no model, of whatever size, has a place for a key; None if that is not known."""
    return next((why for why, pattern in _NOT_NEEDED if re.match(pattern, original)), None)


def trainable_prefixes(settings: ModelSettings) -> tuple[str, ...]:
    """Return the prefixes of the original names of everything that is trained.

    The one list that drives gradients, training mode, optimiser groups and checkpoints.
    """
    # ln_vision is trained and frozen with the ViT, as in the original.
    trains = {
        "vision_encoder": not settings.freeze_vit,
        "vision_norm": not settings.freeze_vit,
        "frame_qformer": not settings.freeze_qformer,
        "video_branch": not settings.frozen_video_Qformer,
        "video_proj": not settings.frozen_llama_proj,
        "audio_branch": settings.equip_audio_branch and not settings.frozen_audio_Qformer,
    }
    return tuple(prefix for group in trains if trains[group] for prefix in GROUPS[group])
