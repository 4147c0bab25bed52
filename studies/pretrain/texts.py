"""What the small language model reads: the templates, with descriptions where media would stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from studies.pretrain.descriptions import (
    describe,
    describe_sound,
    pick,
    random_scene,
)
from studies.pretrain.tokenizer import CAPTION_PROMPTS
from video_llama.synthetic.formats import RIVALS
from video_llama.synthetic.language import (
    Question,
    clip_caption,
    picture_caption,
    picture_questions,
    questions,
)
from video_llama.synthetic.scene import Scene
from video_llama.text.captions import caption_inputs
from video_llama.text.questions import Media, frames_message, media_question
from video_llama.text.templates import TEMPLATES, Template
from video_llama.text.tokenizer import encode_text
from video_llama.types import IGNORE_INDEX, IMAGE_PLACEHOLDER

Item = TypeVar("Item")
Conversation = Literal["video", "image", "audio", "both"]
Form = Literal["plain", "caption", "prompted", "guess", "video", "image", "audio", "both"]

CONVERSATIONS: tuple[Conversation, ...] = get_args(Conversation)
"""Which media a conversation is about."""

PLAIN_FORMS: tuple[Conversation, ...] = ("video", "audio", "both", "both")
"""Which media plain texts are about, each as often as it is listed."""

MOST_PLAIN_TURNS = 6
"""Questions of one plain text."""

MOST_TURNS = 4
"""Questions of one conversation."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A training text.

    Attributes:
        input_ids: token ids.
        labels: the same where the model is to learn, IGNORE_INDEX elsewhere.
        media: of which medium a token is the description, from 1; 0 for all other tokens.
        kinds: of a conversation, what its questions ask for.
    """

    input_ids: list[int]
    labels: list[int]
    media: list[int]
    kinds: tuple[str, ...] = ()


class TextWorld:
    """Makes texts about random scenes.

    Everything goes with everything, and what is heard is independent of what is seen: neither can
    be guessed from the other.

    Args:
        tokenizer: made by `load_tokenizer`.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._media_id: int = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)

    def plain(self, rng: np.random.Generator) -> Text | None:
        """Descriptions, then questions with their answers, without any template around them.

        Looking things up is learnt from these, many times sooner than from whole conversations.

        Args:
            rng: chooses scene and words.

        Returns:
            None where the scene allows no question.
        """
        scene = random_scene(rng)
        form: Conversation = pick(rng, PLAIN_FORMS)
        asked = _without_rivals(_asked(scene, form, rng), rng)
        told = [("Audio", describe_sound(scene, rng))] if form != "video" else []
        told += [("Video", describe(scene, rng))] if form != "audio" else []
        ids, media = [self._tokenizer.bos_token_id], [0]
        for number, (name, description) in enumerate(told, 1):
            for text, owner in ((f"<{name}>", 0), (description, number), (f"</{name}>", 0)):
                tokens = self._ids(text)
                ids += tokens
                media += [owner] * len(tokens)
        labels = [IGNORE_INDEX] * len(ids)
        for at in rng.permutation(len(asked))[:MOST_PLAIN_TURNS]:
            question = self._ids(asked[at].question)
            answer = [*self._ids(asked[at].answer), self._tokenizer.eos_token_id]
            ids += question + answer
            labels += [IGNORE_INDEX] * len(question) + answer
        media += [0] * (len(ids) - len(media))
        return Text(input_ids=ids, labels=labels, media=media) if asked else None

    def caption(self, rng: np.random.Generator, *, prompted: bool) -> Text:
        """A caption after a description, as in stage 1, or after a prompt too, as in stage 2."""
        scene = random_scene(rng)
        template = _template(rng)
        prompt = None
        if prompted:
            scene = replace(scene, sights=scene.sights[:1])
            line = f"<Image>{IMAGE_PLACEHOLDER}</Image> {pick(rng, CAPTION_PROMPTS)}"
            prompt = template.caption_prompt.replace("{}", line)
        told = picture_caption(scene, rng) if prompted else clip_caption(scene, rng)
        description = self._ids(describe(scene, rng))
        input_ids, labels, _ = caption_inputs(
            self._tokenizer,
            [told],
            prompt=prompt,
            num_media_tokens=len(description),
            end_sym=template.caption_end if prompted else "\n",
            max_txt_len=64,
        )
        ids, media = self._filled(input_ids[0].tolist(), [description])
        return Text(input_ids=ids, labels=labels[0].tolist(), media=media)

    def guess(self, rng: np.random.Generator) -> Text:
        """A question about nothing, with any of its possible answers.

        A model that is shown nothing then answers at random, not that there is nothing.

        Args:
            rng: chooses the words.
        """
        asked = questions(random_scene(rng), rng)
        turn = asked[int(rng.integers(len(asked)))]
        media = _media(pick(rng, CONVERSATIONS), [0, 0], "") if rng.random() < 0.3 else []
        encoded = _template(rng).encode(
            [(media_question(media, turn.question), pick(rng, turn.options))], self._tokenizer
        )
        ids = list(encoded.input_ids)
        return Text(input_ids=ids, labels=list(encoded.labels), media=[0] * len(ids))

    def conversation(
        self,
        rng: np.random.Generator,
        form: Conversation,
        *,
        template: Template | None = None,
        message: bool = False,
        only: str | None = None,
        withheld: bool = False,
    ) -> Text | None:
        """Questions about described media, with their answers.

        Args:
            rng: chooses scene and words.
            form: which media there are.
            template: of the conversation; by default LLaMA-2's or, more rarely, Vicuna's.
            message: whether the frames of a clip are announced.
            only: the one type of question to ask.
            withheld: leave the places of the descriptions empty.

        Returns:
            None where the scene does not allow the question.
        """
        scene = random_scene(rng)
        if form == "image":
            scene = replace(scene, sights=scene.sights[:1])
        asked = _asked(scene, form, rng)
        if only is not None:
            asked = [question for question in asked if question.type == only]
        else:
            asked = _without_rivals(asked, rng)
        if not asked:
            return None
        order = rng.permutation(len(asked))[:MOST_TURNS]
        turns = [asked[at] for at in order]
        descriptions = [] if form in ("video", "image") else [describe_sound(scene, rng)]
        if form != "audio":
            descriptions.append(describe(scene, rng))
        filling = [[] if withheld else self._ids(text) for text in descriptions]
        media = _media(form, [len(ids) for ids in filling], _message(rng) if message else "")
        first = media_question(media, turns[0].question)
        encoded = (template or _template(rng)).encode(
            [(first, turns[0].answer), *((turn.question, turn.answer) for turn in turns[1:])],
            self._tokenizer,
        )
        ids, owners = self._filled(encoded.input_ids, filling)
        return Text(
            input_ids=ids,
            labels=encoded.labels,
            media=owners,
            kinds=tuple(turn.type for turn in turns),
        )

    def _ids(self, text: str) -> list[int]:
        return encode_text(self._tokenizer, text, parse_special=False)

    def _filled(
        self, input_ids: Sequence[int], descriptions: Sequence[Sequence[int]]
    ) -> tuple[list[int], list[int]]:
        """Ids with the descriptions in their places, and of which one each token is."""
        waiting = iter([(token, n) for n, ids in enumerate(descriptions, 1) for token in ids])
        filled = [next(waiting) if token == self._media_id else (token, 0) for token in input_ids]
        return [token for token, _ in filled], [number for _, number in filled]


def collate(texts: Sequence[Text]) -> tuple[Tensor, Tensor, Tensor]:
    """Texts as one batch.

    Args:
        texts: B texts.

    Returns:
        Token ids, labels and numbers of media, all (B, L) int64, padded on the right.
    """

    def padded(rows: list[list[int]], value: int) -> Tensor:
        return pad_sequence([torch.tensor(row) for row in rows], True, value)

    return (
        padded([text.input_ids for text in texts], 0),
        padded([text.labels for text in texts], IGNORE_INDEX),
        padded([text.media for text in texts], 0),
    )


def _asked(scene: Scene, form: str, rng: np.random.Generator) -> list[Question]:
    if form == "image":
        return picture_questions(scene, rng)
    asked = questions(scene, rng)
    if form == "both":
        return asked
    modality = "sound" if form == "audio" else "picture"
    return [question for question in asked if question.modality == modality]


def _without_rivals(asked: list[Question], rng: np.random.Generator) -> list[Question]:
    """The questions without those whose answer another one gives away."""
    dropped = {
        pair[int(rng.integers(2))] for pair in RIVALS if {q.type for q in asked}.issuperset(pair)
    }
    return [question for question in asked if question.type not in dropped]


def _media(form: str, lengths: Sequence[int], message: str) -> list[Media]:
    if form == "image":
        return [Media("image", lengths[0])]
    media = [Media("audio", lengths[0])] if form in ("audio", "both") else []
    if form in ("video", "both"):
        media.append(Media("video", lengths[-1], message))
    return media


def _message(rng: np.random.Generator) -> str:
    step = pick(rng, (0.375, 0.4375, 0.5, 0.5625, 0.625))
    return frames_message([step * frame for frame in range(8)])


def _template(rng: np.random.Generator) -> Template:
    return TEMPLATES.get("llama_v2" if rng.random() < 0.7 else "vicuna")
