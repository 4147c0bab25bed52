"""The small LLaMA: trained on the world's text alone, it answers from what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import count as count_from
from pathlib import Path
from typing import Any

import video_llama.compat

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from video_llama.datasets.conversation import TEMPLATES
from video_llama.models.language_model import causal_loss, embed_tokens, load_tokenizer, read_config
from video_llama.synthetic.language import QUESTION_TYPES, SOUND_TYPES
from video_llama.synthetic.pretrain.loop import Recipe, fit, save_half
from video_llama.synthetic.pretrain.texts import (
    CONVERSATIONS,
    Conversation,
    Form,
    Text,
    TextWorld,
    collate,
)
from video_llama.synthetic.randomness import generator
from video_llama.types import IGNORE_INDEX

RECIPE = Recipe(steps=1600, other_learning_rate=6e-3)
TOKENS_PER_BATCH = 2400
INITIAL_STD = 0.06
"""Of all tables and matrices; with the usual 0.02 nothing is looked up for hundreds of steps."""

PLAIN_STEPS = 0.3
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
    # An answer repeats words that were read: it helps to begin with reading and writing alike.
    model.lm_head.weight.data.copy_(model.model.embed_tokens.weight.data)
    batches = _batches(world, seed, plain=round(PLAIN_STEPS * RECIPE.steps))
    log = fit(
        model,
        lambda _: text_loss(model, *next(batches)),
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


def text_loss(model: LlamaForCausalLM, input_ids: Tensor, labels: Tensor) -> Tensor:
    """Mean cross entropy of a batch, (B, L) token ids padded on the right with (B, L) labels."""
    mask = torch.ones_like(input_ids)
    loss, _ = causal_loss(model, embed_tokens(model, input_ids), labels, mask)
    return loss


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
        input_ids, labels = _tensors(texts[start : start + batch_size])
        said = model(input_ids=input_ids).logits[:, :-1].argmax(dim=-1)
        wanted = labels[:, 1:]
        right += int(((said == wanted) | (wanted == IGNORE_INDEX)).all(dim=1).sum())
    return right


def _batches(world: TextWorld, seed: int, *, plain: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches of texts of similar length; the first `plain` ones without templates."""
    count = 0
    for number in count_from(0):
        rng = generator(seed, "texts", number)
        shares = PLAIN_SHARES if count < plain else SHARES
        texts = [_text(world, rng, shares) for _ in range(POOL)]
        groups = list(_grouped(texts))
        for at in rng.permutation(len(groups)):
            yield _tensors(groups[at])
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


def _tensors(texts: list[Text]) -> tuple[Tensor, Tensor]:
    ids, labels = collate(texts)
    return torch.from_numpy(ids), torch.from_numpy(labels)
