"""Pictures beside words: the contrastive step that every picture tower begins with."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.pretrain.pictures import SLOTS, Pictures

DROPPED = 0.5
"""How often a word that does not name the kind is left out of all texts of a batch."""


class TextTower(nn.Module):
    """Bags of words to unit vectors; only used while a picture tower is trained.

    Args:
        width: of the joint space.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.words = nn.ModuleList(nn.Embedding(count + 1, width) for count in SLOTS.values())
        self.log_scale = nn.Parameter(torch.tensor(2.3))

    def forward(self, words: Tensor, slots: Sequence[int]) -> Tensor:
        """(N, number of slots) words, of which those in `slots` are read, to (N, width)."""
        total = torch.stack([self.words[slot](words[:, slot]) for slot in slots]).sum(dim=0)
        return F.normalize(total, dim=-1)


def contrastive_loss(
    pictures: Tensor, words: Tensor, text: TextTower, slots: Sequence[int]
) -> Tensor:
    """Cross entropy of each picture's text among the different texts of the batch.

    Args:
        pictures: (B, width) unit vectors.
        words: (B, number of slots).
        text: tower of the texts.
        slots: which words are said.
    """
    texts, which = torch.unique(words[:, list(slots)], dim=0, return_inverse=True)
    full = words.new_zeros(len(texts), words.shape[1])
    full[:, list(slots)] = texts
    scale = text.log_scale.exp().clamp(max=50.0)
    return F.cross_entropy(scale * pictures @ text(full, slots).T, which)


def random_batch(
    pictures: Pictures, size: int, generator: torch.Generator, names: Sequence[str]
) -> tuple[Tensor, Tensor, list[int]]:
    """Pictures of a batch, their words, and which of the words are said: the kind, or others too.

    Where the colour is not said the pictures are discoloured.

    Args:
        pictures: to choose from.
        size: of the batch.
        generator: source of random numbers.
        names: of the words that may be said.
    """
    index = torch.randint(len(pictures.words), (size,), generator=generator)
    said = ["kind", *(n for n in names[1:] if torch.rand(1, generator=generator) >= DROPPED)]
    if "colour" in said:
        pixels = pictures.normalised(index)
    else:
        pixels = pictures.discoloured(index, generator)
    return pixels, pictures.words[index], [list(SLOTS).index(name) for name in said]


@torch.inference_mode()
def named(pictures: Tensor, words: Tensor, text: TextTower) -> dict[str, float]:
    """Share of pictures whose nearest word is the right one, for every slot.

    Args:
        pictures: (N, width) unit vectors.
        words: (N, number of slots).
        text: tower of the texts.
    """
    found = {}
    for slot, (name, count) in enumerate(SLOTS.items()):
        every = words.new_zeros(count + 1, words.shape[1])
        every[:, slot] = torch.arange(count + 1)
        guess = (pictures @ text(every, [slot]).T).argmax(dim=-1)
        found[name] = round(float((guess == words[:, slot]).float().mean()), 4)
    return found
