"""The small LLaMA: trained on the world's text alone, it answers from what it is told."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count as count_from
from pathlib import Path
from typing import Any

import video_llama.common.compat

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from studies.pretrain.loop import Recipe, fit, save_half
from studies.pretrain.texts import (
    CONVERSATIONS,
    Conversation,
    Form,
    Text,
    TextWorld,
    collate,
)
from video_llama.models.language_model import causal_loss, embed_tokens, load_tokenizer, read_config
from video_llama.synthetic.language import QUESTION_TYPES, SOUND_TYPES
from video_llama.synthetic.splits import generator
from video_llama.text.templates import TEMPLATES
from video_llama.types import IGNORE_INDEX

RECIPE = Recipe(steps=2400, other_learning_rate=6e-3)
TOKENS_PER_BATCH = 2400
INITIAL_STD = 0.06
"""Of all matrices; with the usual 0.02 nothing is looked up for hundreds of steps."""

WORD_STD = 0.6
"""Of the words: about as long as what a new linear layer puts in the place of media."""

LENGTHS = (0.5, 6.0)
"""Least and largest factor on the length of a description's embeddings."""

NOISE = 1.2
"""Largest length of the noise on a description's embeddings, as a share of theirs."""

MIXING = 0.6
"""Largest share of its neighbour that is added to an embedding of a description."""

PLAIN_STEPS = 0.2
"""Share of the steps in which texts have no template."""

POOL = 256
"""Texts that are sorted by length, so that a batch has little padding."""

PLAIN_SHARES: dict[Form, float] = {"plain": 0.85, "caption": 0.15}
"""Shares of the forms at first."""

SHARES: dict[Form, float] = {
    "plain": 0.1,
    "caption": 0.1,
    "prompted": 0.05,
    "guess": 0.05,
    "video": 0.15,
    "image": 0.05,
    "audio": 0.1,
    "both": 0.4,
}
"""Shares of the forms after that."""

QUESTIONS_PER_TYPE = 60
"""Questions to score of every type, form and template."""


def train_language(folder: Path, seed: int) -> dict[str, Any]:
    """Train the language model and write its weights beside its configuration.

    Args:
        folder: holds `config.json` and `tokenizer.model`; gets `model.safetensors`.
        seed: of weights and texts.

    Returns:
        Its log and figures.
    """
    torch.manual_seed(seed)
    world = TextWorld(load_tokenizer(folder))
    config = read_config(folder)
    config.initializer_range = INITIAL_STD
    model = LlamaForCausalLM(config)
    words = model.model.embed_tokens.weight.data.normal_(std=WORD_STD)
    # An answer repeats words that were read: it helps to begin with reading and writing alike.
    model.lm_head.weight.data.copy_(words * (INITIAL_STD / WORD_STD))
    batches = _batches(world, seed, plain=round(PLAIN_STEPS * RECIPE.steps))
    random = torch.Generator().manual_seed(seed)
    log = fit(
        model,
        lambda _: text_loss(model, *next(batches), random),
        RECIPE,
        title="language",
    )
    save_half(folder / "model.safetensors", model.state_dict())
    model.half().float().eval()
    return {
        "seed": seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "training": log,
        "scores": scores(model, world, seed + 1),
    }


def text_loss(
    model: LlamaForCausalLM,
    input_ids: Tensor,
    labels: Tensor,
    media: Tensor,
    random: torch.Generator,
) -> Tensor:
    """Mean cross entropy of a batch.

    Args:
        model: the language model.
        input_ids: (B, L) token ids, padded on the right.
        labels: (B, L).
        media: (B, L), of which medium a token is the description; 0: of none.
        random: source of random numbers.
    """
    embedded = softened(embed_tokens(model, input_ids), media, random)
    loss, _ = causal_loss(model, embedded, labels, torch.ones_like(input_ids))
    return loss


def softened(embedded: Tensor, media: Tensor, random: torch.Generator) -> Tensor:
    """Descriptions as what a branch puts in their place: of another length, and no clean words.

    A branch's tokens are up to four times as long as words, and each tells of several things. A
    model that knows words alone does not tell apart to whom such tokens belong.

    Args:
        embedded: (B, L, D).
        media: (B, L), of which medium a token is the description; 0: of none.
        random: source of random numbers.

    Returns:
        (B, L, D); every description has a length and a strength of noise of its own.
    """
    least, largest = map(math.log, LENGTHS)
    shape = (len(media), int(media.max()) + 1)

    def of_each(drawn: Tensor) -> Tensor:
        return drawn.gather(1, media)[..., None]

    factor = of_each((least + (largest - least) * torch.rand(shape, generator=random)).exp())
    strength = of_each(NOISE * torch.rand(shape, generator=random))
    mixing = of_each(MIXING * torch.rand(shape, generator=random))
    noise = torch.randn(embedded.shape, generator=random) / math.sqrt(embedded.shape[-1])
    length = embedded.detach().norm(dim=-1, keepdim=True)
    alike = (media == media.roll(1, dims=1))[..., None]
    mixed = embedded + mixing * alike * embedded.roll(1, dims=1)
    described = factor * (mixed + strength * length * noise)
    return torch.where(media[..., None] > 0, described, embedded)


def scores(model: LlamaForCausalLM, world: TextWorld, seed: int) -> dict[str, Any]:
    """Shares of right answers by type of question, with the description and without it.

    An answer counts where every token of it, the end mark included, is the likeliest one.

    Args:
        model: in eval mode.
        world: makes the texts.
        seed: of the texts.
    """
    return {
        f"{form}/{template}{'/withheld' if withheld else ''}": {
            kind: _score(model, world, seed, form, template, kind, withheld=withheld)
            for kind in QUESTION_TYPES
            if form == "both" or (kind in SOUND_TYPES) == (form == "audio")
        }
        for form in CONVERSATIONS[:1] + CONVERSATIONS[2:]
        for template in TEMPLATES
        for withheld in (False, True)
        if template == "llama_v2" or not withheld
    }


def _score(
    model: LlamaForCausalLM,
    world: TextWorld,
    seed: int,
    form: Conversation,
    template: str,
    kind: str,
    *,
    withheld: bool,
) -> float:
    rng = generator(seed, f"score/{form}/{template}/{kind}/{withheld}")
    texts: list[Text] = []
    while len(texts) < QUESTIONS_PER_TYPE:
        text = world.conversation(
            rng,
            form,
            template=TEMPLATES.get(template),
            message=form != "audio",
            only=kind,
            withheld=withheld,
        )
        if text is not None:
            texts.append(text)
    return answered(model, texts) / len(texts)


@torch.inference_mode()
def answered(model: LlamaForCausalLM, texts: list[Text], batch_size: int = 25) -> int:
    """How many of the texts, each with one answer, are continued as they are."""
    right = 0
    for start in range(0, len(texts), batch_size):
        input_ids, labels, _ = collate(texts[start : start + batch_size])
        said = model(input_ids=input_ids).logits[:, :-1].argmax(dim=-1)
        wanted = labels[:, 1:]
        right += int(((said == wanted) | (wanted == IGNORE_INDEX)).all(dim=1).sum())
    return right


def _batches(world: TextWorld, seed: int, *, plain: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless batches of texts of similar length; the first `plain` ones without templates."""
    count = 0
    for number in count_from(0):
        rng = generator(seed, "texts", number)
        shares = PLAIN_SHARES if count < plain else SHARES
        texts = [_text(world, rng, shares) for _ in range(POOL)]
        groups = list(_grouped(texts))
        for at in rng.permutation(len(groups)):
            yield collate(groups[at])
        count += len(groups)


def _text(world: TextWorld, rng: np.random.Generator, shares: dict[Form, float]) -> Text:
    form = tuple(shares)[int(rng.choice(len(shares), p=list(shares.values())))]
    text = None
    if form == "plain":
        text = world.plain(rng)
    elif form == "guess":
        text = world.guess(rng)
    elif form != "caption" and form != "prompted":
        text = world.conversation(rng, form, message=bool(rng.random() < 0.5))
    return text or world.caption(rng, prompted=form == "prompted")


def _grouped(texts: list[Text]) -> Iterator[list[Text]]:
    """Texts of similar length, together at most TOKENS_PER_BATCH long when padded."""
    group: list[Text] = []
    for text in sorted(texts, key=lambda text: len(text.input_ids)):
        if group and len(text.input_ids) * (len(group) + 1) > TOKENS_PER_BATCH:
            yield group
            group = []
        group.append(text)
    yield group
