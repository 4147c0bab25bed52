"""Contrastive training of pictures and words, with which every picture tower begins."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.pretrain.media import SLOTS, Pictures

DROPPED = 0.5
"""How often a word other than the kind is left out of all texts of a batch."""


class TextTower(nn.Module):
    """Bags of words to unit vectors of `width`; only used while a picture tower is trained."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.ModuleList(nn.Embedding(count + 1, width) for count in SLOTS.values())
        # A factor of exp(2.3) = 10 on the similarities at the start.
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    def forward(self, words: Tensor, slots: Sequence[int]) -> Tensor:
        """Encode words (N, number of slots), of which those in `slots` are read, to (N, width)."""
        total = torch.stack([self.words[slot](words[:, slot]) for slot in slots]).sum(dim=0)
        return F.normalize(total, dim=-1)


def contrastive_loss(
    pictures: Tensor, words: Tensor, text: TextTower, slots: Sequence[int]
) -> Tensor:
    """Return the cross entropy of each picture's text among the distinct texts of the batch.

    Args:
        pictures: (B, width) unit vectors.
        words: (B, number of slots).
        text: tower of the texts.
        slots: which words are said.
    """
    # Pictures with equal words have one text: it must not be its own negative.
    texts, which = torch.unique(words[:, list(slots)], dim=0, return_inverse=True)
    # The tower reads full rows: slots that are not said stay at word 0 and are not read.
    full = words.new_zeros(len(texts), words.shape[1])
    full[:, list(slots)] = texts
    scale = text.log_scale.exp().clamp(max=50.0)
    return F.cross_entropy(scale * pictures @ text(full, slots).T, which)


def random_batch(
    pictures: Pictures, size: int, generator: torch.Generator, names: Sequence[str]
) -> tuple[Tensor, Tensor, list[int]]:
    """Draw pictures (B, 3, S, S) with their words (B, slots), and choose the slots that are said.

    Args:
        pictures: to choose from.
        size: B.
        generator: source of random numbers.
        names: slots that may be said; the first always is.
    """
    index = torch.randint(len(pictures.words), (size,), generator=generator)
    said = ["kind", *(n for n in names[1:] if torch.rand(1, generator=generator) >= DROPPED)]
    # Where the colour is not said it must not help either: the shape has to be recognised.
    if "colour" in said:
        pixels = pictures.normalised(index)
    else:
        pixels = pictures.discoloured(index, generator)
    return pixels, pictures.words[index], [list(SLOTS).index(name) for name in said]


@torch.inference_mode()
def word_accuracy(pictures: Tensor, words: Tensor, text: TextTower) -> dict[str, float]:
    """Return for every slot the share of pictures, (N, width) unit vectors, nearest to its word."""
    accuracy = {}
    for slot, (name, count) in enumerate(SLOTS.items()):
        every = words.new_zeros(count + 1, words.shape[1])
        # One text for each word of the slot, and for the word that says there is nothing.
        every[:, slot] = torch.arange(count + 1)
        guess = (pictures @ text(every, [slot]).T).argmax(dim=-1)
        accuracy[name] = round(float((guess == words[:, slot]).float().mean()), 4)
    return accuracy
