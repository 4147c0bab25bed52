"""Pre-training of the small LLaMA on text alone: it answers from descriptions of media."""

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

from studies.pretrain.loop import FitSettings, fit, save_half
from studies.pretrain.texts import CONVERSATIONS, ConversationForm, Form, Text, TextWorld, collate
from video_llama.models.language_model import causal_loss, embed_tokens, read_config
from video_llama.synthetic.language import QUESTION_TYPES, SOUND_TYPES
from video_llama.synthetic.splits import generator
from video_llama.text.templates import TEMPLATES
from video_llama.text.tokenizer import load_tokenizer
from video_llama.types import IGNORE_INDEX

SETTINGS = FitSettings(steps=2400, other_learning_rate=6e-3)
TOKENS_PER_BATCH = 2400
INITIAL_STD = 0.06
"""Of all matrices; with the usual 0.02 it takes hundreds of steps until anything is looked up."""

WORD_STD = 0.6
"""Of the embeddings: about as long as what a new linear layer puts in the place of media."""

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
"""Shares of the forms in the plain steps."""

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
        The report: curve and scores.
    """
    torch.manual_seed(seed)
    world = TextWorld(load_tokenizer(folder))
    config = read_config(folder)
    config.initializer_range = INITIAL_STD
    model = LlamaForCausalLM(config)
    words = model.model.embed_tokens.weight.data.normal_(std=WORD_STD)
    # An answer repeats words that were read: it helps to begin with reading and writing alike.
    model.lm_head.weight.data.copy_(words * (INITIAL_STD / WORD_STD))
    # Generators of their own: neither the texts nor the noise depend on how a model is initialised.
    batches = _batches(world, seed, plain=round(PLAIN_STEPS * SETTINGS.steps))
    random = torch.Generator().manual_seed(seed)
    log = fit(model, lambda _: text_loss(model, *next(batches), random), SETTINGS, title="language")
    save_half(folder / "model.safetensors", model.state_dict())
    # Scored as it was written: in half precision.
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
    """Return the mean cross entropy of a batch; `input_ids`, `labels`, `media` as of `collate`."""
    embedded = softened(embed_tokens(model, input_ids), media, random)
    loss, _ = causal_loss(model, embedded, labels, torch.ones_like(input_ids))
    return loss


def softened(embedded: Tensor, media: Tensor, random: torch.Generator) -> Tensor:
    """Make the embeddings of descriptions resemble what a branch puts in their place.

    A branch's tokens are up to four times as long as words, and each carries several words. A model
    that was trained on clean words confuses to which medium such tokens belong.

    Args:
        embedded: (B, L, D).
        media: (B, L), number of the medium that a token describes; 0: of none.
        random: source of random numbers.

    Returns:
        (B, L, D); every description has a length and a strength of noise of its own.
    """
    least, largest = map(math.log, LENGTHS)
    shape = (len(media), int(media.max()) + 1)

    def of_each(drawn: Tensor) -> Tensor:
        return drawn.gather(1, media)[..., None]

    # Lengths vary by factors, hence uniform in their logarithm.
    factor = of_each((least + (largest - least) * torch.rand(shape, generator=random)).exp())
    strength = of_each(NOISE * torch.rand(shape, generator=random))
    mixing = of_each(MIXING * torch.rand(shape, generator=random))
    noise = torch.randn(embedded.shape, generator=random) / math.sqrt(embedded.shape[-1])
    length = embedded.detach().norm(dim=-1, keepdim=True)
    # Neighbours mix within one description only.
    alike = (media == media.roll(1, dims=1))[..., None]
    mixed = embedded + mixing * alike * embedded.roll(1, dims=1)
    described = factor * (mixed + strength * length * noise)
    return torch.where(media[..., None] > 0, described, embedded)


def scores(model: LlamaForCausalLM, world: TextWorld, seed: int) -> dict[str, Any]:
    """Return the shares of right answers by type of question, with the description and without.

    An answer counts where every token of it, the end mark included, is the likeliest one.
    """
    # Videos stand for pictures; without a description one template suffices: it is chance level.
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
    form: ConversationForm,
    template: str,
    kind: str,
    *,
    withheld: bool,
) -> float:
    # A scene may not allow the question: texts are drawn until there are enough.
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
    """Return how many of the texts, each with one answer, the model completes as they are."""
    # Padding needs no mask: it stands on the right, and its labels are ignored.
    right = 0
    for start in range(0, len(texts), batch_size):
        input_ids, labels, _ = collate(texts[start : start + batch_size])
        said = model(input_ids=input_ids).logits[:, :-1].argmax(dim=-1)
        wanted = labels[:, 1:]
        right += int(((said == wanted) | (wanted == IGNORE_INDEX)).all(dim=1).sum())
    return right


def _batches(world: TextWorld, seed: int, *, plain: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield batches of texts of similar length without end; the first `plain` have no templates."""
    # Batches come from pools: sorting all texts by length would need all of them at once.
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
    # Where a scene allows no question a caption takes the place of the text.
    text = None
    if form == "plain":
        text = world.plain(rng)
    elif form == "guess":
        text = world.guess(rng)
    elif form != "caption" and form != "prompted":
        text = world.conversation(rng, form, message=bool(rng.random() < 0.5))
    return text or world.caption(rng, prompted=form == "prompted")


def _grouped(texts: list[Text]) -> Iterator[list[Text]]:
    """Group texts of similar length, at most TOKENS_PER_BATCH tokens with padding."""
    group: list[Text] = []
    # The longest text of a group, the last one, decides on the padding of all.
    for text in sorted(texts, key=lambda text: len(text.input_ids)):
        if group and len(text.input_ids) * (len(group) + 1) > TOKENS_PER_BATCH:
            yield group
            group = []
        group.append(text)
    yield group
