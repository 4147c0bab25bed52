"""Pre-training of ImageBind: pictures beside words, then sounds beside the frozen picture tower."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import video_llama.common.compat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.pretrain.contrast import TextTower, contrastive_loss, random_batch, word_accuracy
from studies.pretrain.loop import FitSettings, fit, save_half
from studies.pretrain.media import Pictures, Sounds, draw_pictures, play_sounds
from video_llama.models.audio_encoder import ImageBind
from video_llama.models.settings import ModelSettings
from video_llama.synthetic.scene import KINDS
from video_llama.synthetic.splits import Split

PICTURES = FitSettings(steps=1600)
SOUNDS = FitSettings(steps=600)
PICTURE_BATCH, SOUND_BATCH = 64, 32
NUM_PICTURES, NUM_SOUNDS = 12000, 4000
NUM_SCORED = 500
POSITION_STD = 0.3
SAID = ("kind", "colour", "number")
"""Slots of words that the joint space represents."""

SCORED: tuple[Split, ...] = ("valid", "test_pairs")
"""Splits that the towers are scored on."""

MOST_SHIFT = 5
"""Largest shift of a spectrogram, in mel bins: the same sound, higher or lower."""

MOST_STRETCH = 0.2
"""Largest change of a spectrogram's tempo, as a share of it."""

SHARPNESS = 10.0
"""Factor on the similarity of sounds and pictures in their loss."""


def train_imagebind(folder: Path, settings: ModelSettings, seed: int) -> dict[str, Any]:
    """Train both towers and write `imagebind.safetensors`.

    Returns:
        The report: curves and scores.
    """
    torch.manual_seed(seed)
    sizes = settings.imagebind_config
    pictures = draw_pictures(seed + 3000, "train", NUM_PICTURES, size=sizes.image_size)
    model, text = ImageBind(sizes), TextTower(sizes.out_embed_dim)
    # With the usual small positions the towers do not learn where things are.
    for modality in ("vision", "audio"):
        stem = model.modality_preprocessors[modality]
        nn.init.normal_(stem.get_parameter("pos_embedding_helper.pos_embed"), std=POSITION_STD)
    log = {"pictures": _train_pictures(model, text, pictures, seed)}
    sounds = play_sounds(seed + 4000, "train", NUM_SOUNDS)
    log["sounds"] = _train_sounds(model, pictures, sounds, seed)
    save_half(folder / "imagebind.safetensors", dict(model.named_parameters()))
    # Scored as it was written: in half precision.
    for parameter in model.parameters():
        parameter.data = parameter.data.half().float()
    return {
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training": log,
        "scores": {split: _scores(model, text, pictures, split, seed) for split in SCORED},
    }


def _train_pictures(
    model: ImageBind, text: TextTower, pictures: Pictures, seed: int
) -> dict[str, Any]:
    random = torch.Generator().manual_seed(seed)

    def loss_at(step: int) -> Tensor:
        pixels, words, slots = random_batch(pictures, PICTURE_BATCH, random, SAID)
        return contrastive_loss(model(pixels[:, None], "vision")[:, 0], words, text, slots)

    return fit(nn.ModuleList([model, text]), loss_at, PICTURES, title="imagebind, pictures")


def _train_sounds(
    model: ImageBind, pictures: Pictures, sounds: Sounds, seed: int
) -> dict[str, Any]:
    """Train the tower of sounds: each finds its picture among one picture of every other kind."""
    for part in (model.modality_preprocessors, model.modality_trunks, model.modality_heads):
        part["vision"].requires_grad_(False)
    random = torch.Generator().manual_seed(seed + 1)
    # The tower of pictures is frozen, so their vectors are computed once.
    with torch.inference_mode():
        every = torch.arange(len(pictures.words))
        anchors = torch.cat(
            [_picture_vectors(model, pictures, i) for i in every.split(200)]
        ).clone()
    places = [(pictures.words[:, 0] == kind).nonzero()[:, 0] for kind in range(len(KINDS) + 1)]

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(sounds.kinds), (SOUND_BATCH,), generator=random)
        # A few thousand sounds would be learnt by heart without variation.
        spectrograms = varied(sounds.spectrograms[index].float(), random)
        vectors = F.normalize(model(spectrograms[:, None], "audio")[:, 0], dim=-1)
        shown = torch.stack(
            [
                anchors[place[torch.randint(len(place), (SOUND_BATCH,), generator=random)]]
                for place in places
            ],
            dim=1,
        )
        similar = torch.einsum("b d, b k d -> b k", vectors, shown)
        kinds = sounds.kinds[index]
        # Also near in absolute terms: the branch that is trained on pictures gets sounds later.
        near = similar.gather(1, kinds[:, None]).mean()
        return F.cross_entropy(SHARPNESS * similar, kinds) + (1 - near)

    return fit(model, loss_at, SOUNDS, title="imagebind, sounds")


def varied(spectrograms: Tensor, random: torch.Generator) -> Tensor:
    """Make spectrograms, (B, 1, mel, frames), a little higher or lower, faster or slower.

    Edges are repeated.
    """
    count, _, bins, frames = spectrograms.shape
    shift = torch.randint(-MOST_SHIFT, MOST_SHIFT + 1, (count, 1), generator=random)
    rate = 1 + MOST_STRETCH * (2 * torch.rand(count, 1, generator=random) - 1)
    # Nearest neighbours, not interpolation: bins are narrow against the shifts.
    rows = (torch.arange(bins) + shift).clamp(0, bins - 1)
    columns = (torch.arange(frames) * rate).long().clamp(max=frames - 1)
    return spectrograms[torch.arange(count)[:, None, None], 0, rows[..., None], columns[:, None]][
        :, None
    ]


def _picture_vectors(model: ImageBind, pictures: Pictures, index: Tensor) -> Tensor:
    """Encode some pictures to (B, D) unit vectors."""
    vectors: Tensor = model(pictures.normalised(index)[:, None], "vision")
    return vectors[:, 0]


def _sound_vectors(model: ImageBind, sounds: Sounds, index: Tensor) -> Tensor:
    """Encode some sounds to (B, D) vectors."""
    vectors: Tensor = model(sounds.spectrograms[index].float()[:, None], "audio")
    return vectors[:, 0]


@torch.inference_mode()
def _scores(
    model: ImageBind, text: TextTower, trained: Pictures, split: Split, seed: int
) -> dict[str, float]:
    """Score the words of pictures, and the kind of sounds by the nearest mean picture of a kind."""
    pictures = draw_pictures(seed + 5000, split, NUM_SCORED, size=trained.pixels.shape[-1])
    sounds = play_sounds(seed + 6000, split, NUM_SCORED)
    every = torch.arange(NUM_SCORED)
    picture_scores = word_accuracy(_picture_vectors(model, pictures, every), pictures.words, text)
    sound_vectors = torch.cat([_sound_vectors(model, sounds, index) for index in every.split(100)])
    # The model is used through pictures, so sounds are scored against pictures and not words.
    kinds = range(len(KINDS) + 1)
    shown = [(trained.words[:, 0] == kind).nonzero()[:100, 0] for kind in kinds]
    means = torch.stack([_picture_vectors(model, trained, index).mean(dim=0) for index in shown])
    right = ((sound_vectors @ means.T).argmax(dim=-1) == sounds.kinds).float()
    return {f"picture/{name}": picture_scores[name] for name in SAID} | {
        "sound/kind": round(float(right[sounds.kinds > 0].mean()), 4),
        "sound/silent": round(float(right[sounds.kinds == 0].mean()), 4),
    }
