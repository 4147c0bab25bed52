"""Pre-training of EVA and the frame Q-Former: contrastive first, then captions, as in BLIP-2."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import video_llama.common.compat

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.pretrain.contrast import TextTower, contrastive_loss, random_batch, word_accuracy
from studies.pretrain.loop import FitSettings, fit, save_half
from studies.pretrain.media import SLOTS, Pictures, draw_pictures
from video_llama.models.qformer import FrameQFormer, frame_qformer
from video_llama.models.settings import ModelSettings
from video_llama.models.vision_encoder import VisionEncoder
from video_llama.models.weights.names import original_name
from video_llama.synthetic.splits import Split

CONTRASTIVE = FitSettings(steps=800)
CAPTIONING = FitSettings(steps=1100)
BATCH_SIZE = 64
NUM_PICTURES = 12000
NUM_SCORED = 800
POSITION_STD = 0.3
"""Of the ViT's initial positions: with the usual 0.02 it does not learn where things are."""

SCORED: tuple[Split, ...] = ("valid", "test_pairs")
"""Splits that the captions are scored on."""

CAPTION_WIDTH = 64
"""Width of the decoder that says them."""

DISCOLOURED = 0.4
"""Share of the batches with discoloured pictures, whose captions do not name the colour."""


class Captioner(nn.Module):
    """A one-layer decoder that says the words of a picture in order; not kept after the training.

    Args:
        width: of the Q-Former's output.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        counts = [count + 1 for count in SLOTS.values()]
        self.start = nn.Parameter(torch.randn(1, 1, CAPTION_WIDTH) * 0.02)
        self.place = nn.Parameter(torch.randn(1, len(counts), CAPTION_WIDTH) * 0.5)
        self.words = nn.ModuleList(nn.Embedding(count, CAPTION_WIDTH) for count in counts[:-1])
        self.memory = nn.Linear(width, CAPTION_WIDTH)
        self.decoder = nn.TransformerDecoderLayer(
            CAPTION_WIDTH, 4, 128, dropout=0.0, batch_first=True, norm_first=True
        )
        self.heads = nn.ModuleList(nn.Linear(CAPTION_WIDTH, count) for count in counts)

    def forward(self, queries: Tensor, words: Tensor) -> list[Tensor]:
        """Return the logits of every word, (B, count) each.

        Args:
            queries: (B, Q, width) of the frame Q-Former.
            words: (B, number of slots); each is predicted from those before it.
        """
        # Teacher forcing: each word is predicted from the true words before it.
        said = [table(words[:, slot])[:, None] for slot, table in enumerate(self.words)]
        inputs = torch.cat([self.start.expand(len(words), -1, -1), *said], dim=1) + self.place
        mask = nn.Transformer.generate_square_subsequent_mask(inputs.shape[1])
        hidden = self.decoder(inputs, self.memory(queries), tgt_mask=mask, tgt_is_causal=True)
        return [head(hidden[:, slot]) for slot, head in enumerate(self.heads)]


def train_vision(folder: Path, settings: ModelSettings, seed: int) -> dict[str, Any]:
    """Train both parts and write `eva.safetensors` and `qformer.safetensors`.

    Returns:
        The report: curves and scores.
    """
    torch.manual_seed(seed)
    pictures = draw_pictures(seed + 1000, "train", NUM_PICTURES, size=settings.image_size)
    encoder, queries = VisionEncoder(settings), frame_qformer(settings)
    captioner = Captioner(settings.qformer_config.hidden_size)
    # See POSITION_STD.
    nn.init.normal_(encoder.vit.get_parameter("pos_embed"), std=POSITION_STD)
    log = {
        "contrastive": _train_encoder(encoder, pictures, settings, seed),
        "captioning": _train_queries(encoder, queries, captioner, pictures, seed),
    }
    _save(folder, encoder, queries)
    return {
        "seed": seed,
        "parameters": {
            "vit": sum(p.numel() for p in encoder.parameters()),
            "qformer": sum(p.numel() for p in queries.parameters()),
        },
        "training": log,
        "scores": {
            split: caption_accuracy(
                encoder,
                queries,
                captioner,
                draw_pictures(seed + 2000, split, NUM_SCORED, size=settings.image_size),
            )
            for split in SCORED
        },
    }


def _train_encoder(
    encoder: VisionEncoder, pictures: Pictures, settings: ModelSettings, seed: int
) -> dict[str, Any]:
    width = settings.vit_config.embed_dim
    text, head = TextTower(width), nn.Linear(2 * width, width)
    random = torch.Generator().manual_seed(seed)

    def loss_at(step: int) -> Tensor:
        pixels, words, slots = random_batch(pictures, BATCH_SIZE, random, list(SLOTS))
        tokens = encoder(pixels)
        # Class token and mean of the patches: all tokens that the Q-Former reads get a gradient.
        pooled = torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=-1)
        return contrastive_loss(F.normalize(head(pooled), dim=-1), words, text, slots)

    # The tower of words and the head are not kept: their work is done.
    log = fit(
        nn.ModuleList([encoder, text, head]), loss_at, CONTRASTIVE, title="vision, contrastive"
    )
    with torch.inference_mode():
        index = torch.arange(min(NUM_SCORED, len(pictures.words)))
        tokens = encoder(pictures.normalised(index))
        pooled = torch.cat([tokens[:, 0], tokens[:, 1:].mean(dim=1)], dim=-1)
        vectors = F.normalize(head(pooled), dim=-1)
    return log | {"trained_pictures": word_accuracy(vectors, pictures.words[index], text)}


def _train_queries(
    encoder: VisionEncoder,
    queries: FrameQFormer,
    captioner: Captioner,
    pictures: Pictures,
    seed: int,
) -> dict[str, Any]:
    random = torch.Generator().manual_seed(seed + 1)

    def loss_at(step: int) -> Tensor:
        index = torch.randint(len(pictures.words), (BATCH_SIZE,), generator=random)
        words = pictures.words[index]
        # A word that is not said is input 0 for those after it, and has no loss of its own.
        said = dict(enumerate(SLOTS))
        if torch.rand(1, generator=random) < DISCOLOURED:
            pixels = pictures.discoloured(index, random)
            words[:, list(SLOTS).index("colour")] = 0
            said.pop(list(SLOTS).index("colour"))
        else:
            pixels = pictures.normalised(index)
        logits = captioner(queries(encoder(pixels)), words)
        return torch.stack([F.cross_entropy(logits[slot], words[:, slot]) for slot in said]).sum()

    # EVA goes on training: captions need more of it than single words did.
    trained = nn.ModuleList([encoder, queries, captioner]).train()
    log = fit(trained, loss_at, CAPTIONING, title="vision, captioning")
    trained.eval()
    return log


@torch.inference_mode()
def caption_accuracy(
    encoder: VisionEncoder, queries: FrameQFormer, captioner: Captioner, pictures: Pictures
) -> dict[str, float]:
    """Return for every slot the share of right words, each after the right words before it."""
    right = torch.zeros(len(SLOTS))
    for index in torch.arange(len(pictures.words)).split(100):
        words = pictures.words[index]
        logits = captioner(queries(encoder(pictures.normalised(index))), words)
        for slot, row in enumerate(logits):
            right[slot] += (row.argmax(dim=-1) == words[:, slot]).sum()
    shares = (right / len(pictures.words)).tolist()
    return {name: round(share, 4) for name, share in zip(SLOTS, shares, strict=True)}


def _save(folder: Path, encoder: VisionEncoder, queries: FrameQFormer) -> None:
    halves = {"vision_encoder": encoder, "frame_qformer": queries}
    tensors = {
        original_name(f"{part}.{name}"): parameter
        for part, module in halves.items()
        for name, parameter in module.named_parameters()
    }
    # The released files are apart, too: EVA without its prefix, BLIP-2 with the rest.
    prefix = "visual_encoder."
    eva = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
    save_half(folder / "eva.safetensors", eva)
    rest = {name: t for name, t in tensors.items() if not name.startswith(prefix)}
    save_half(folder / "qformer.safetensors", rest)
    # The scores are to be those of the half precision that was written.
    for parameter in (*encoder.parameters(), *queries.parameters()):
        parameter.data = parameter.data.half().float()
