"""Texts for the small language model: the templates, with descriptions where media would stand.

A scene is drawn at random, described, and asked about. Everything goes with everything, and what is
heard is independent of what is seen: neither can be guessed from the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, TypeVar, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from studies.pretrain.tokenizer import CAPTION_PROMPTS
from video_llama.synthetic.formats import RIVALS
from video_llama.synthetic.language import (
    Question,
    clip_caption,
    picture_caption,
    picture_questions,
    questions,
    sound_caption,
)
from video_llama.synthetic.scene import COLOURS, KINDS, MOTIONS, Kind, Scene, Sight, Sound
from video_llama.synthetic.wording import ENGLISH
from video_llama.text.captions import caption_inputs
from video_llama.text.questions import Media, frames_message, media_question
from video_llama.text.templates import TEMPLATES, Template
from video_llama.text.tokenizer import encode_text
from video_llama.types import IGNORE_INDEX, IMAGE_PLACEHOLDER

T = TypeVar("T")
ConversationForm = Literal["video", "image", "audio", "both"]
Form = Literal["plain", "caption", "prompted", "guess", "video", "image", "audio", "both"]

CONVERSATIONS: tuple[ConversationForm, ...] = get_args(ConversationForm)
"""Which media a conversation is about."""

PLAIN_FORMS: tuple[ConversationForm, ...] = ("video", "audio", "both", "both")
"""Which media plain texts are about, each as often as it is listed."""

MOST_PLAIN_TURNS = 6
"""Questions of one plain text."""

MOST_TURNS = 4
"""Questions of one conversation."""


@dataclass(frozen=True, kw_only=True)
class Text:
    """A training text."""

    input_ids: list[int]
    labels: list[int]
    """The ids where the model is to learn, IGNORE_INDEX elsewhere."""
    media: list[int]
    """Number of the medium that a token describes, from 1; 0 for all other tokens."""
    kinds: tuple[str, ...] = ()
    """Types of the questions of a conversation."""


class TextWorld:
    """Makes texts about random scenes, with a tokenizer of `load_tokenizer`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._media_id: int = tokenizer.convert_tokens_to_ids(IMAGE_PLACEHOLDER)

    def plain(self, rng: np.random.Generator) -> Text | None:
        """Write descriptions, then questions with their answers, without a template around them.

        Looking things up is learnt from these, many times sooner than from whole conversations.

        Returns:
            None where the scene allows no question.
        """
        # Draws from `rng` stay in this order: the texts of a seed depend on it.
        scene = random_scene(rng)
        form: ConversationForm = pick(rng, PLAIN_FORMS)
        turns = _without_rivals(_questions(scene, form, rng), rng)
        descriptions = [("Audio", describe_sound(scene, rng))] if form != "video" else []
        descriptions += [("Video", describe(scene, rng))] if form != "audio" else []
        # Marks belong to no medium: only what stands between them is softened later.
        ids, media = [self._tokenizer.bos_token_id], [0]
        for number, (name, description) in enumerate(descriptions, 1):
            for text, owner in ((f"<{name}>", 0), (description, number), (f"</{name}>", 0)):
                tokens = self._ids(text)
                ids += tokens
                media += [owner] * len(tokens)
        labels = [IGNORE_INDEX] * len(ids)
        # The loss is on the answers alone.
        for at in rng.permutation(len(turns))[:MOST_PLAIN_TURNS]:
            question = self._ids(turns[at].question)
            answer = [*self._ids(turns[at].answer), self._tokenizer.eos_token_id]
            ids += question + answer
            labels += [IGNORE_INDEX] * len(question) + answer
        media += [0] * (len(ids) - len(media))
        return Text(input_ids=ids, labels=labels, media=media) if turns else None

    def caption(self, rng: np.random.Generator, *, prompted: bool) -> Text:
        """Write a caption after a description (stage 1), or after a prompt as well (stage 2)."""
        scene = random_scene(rng)
        template = _template(rng)
        prompt = None
        if prompted:
            # Captions of stage 2 are about pictures, which show one thing.
            scene = replace(scene, sights=scene.sights[:1])
            line = f"<Image>{IMAGE_PLACEHOLDER}</Image> {pick(rng, CAPTION_PROMPTS)}"
            prompt = template.caption_prompt.replace("{}", line)
        caption = picture_caption(scene, rng) if prompted else clip_caption(scene, rng)
        description = self._ids(describe(scene, rng))
        # The function of the trainings makes the text, so that the two cannot differ.
        input_ids, labels, _ = caption_inputs(
            self._tokenizer,
            [caption],
            prompt=prompt,
            num_media_tokens=len(description),
            end_sym=template.caption_end if prompted else "\n",
            max_txt_len=64,
        )
        ids, media = self._filled(input_ids[0].tolist(), [description])
        return Text(input_ids=ids, labels=labels[0].tolist(), media=media)

    def guess(self, rng: np.random.Generator) -> Text:
        """Write a question about nothing, with any of its possible answers.

        A model that is shown nothing then answers at random, not that there is nothing.
        """
        candidates = questions(random_scene(rng), rng)
        turn = candidates[int(rng.integers(len(candidates)))]
        # Sometimes with the sentences around media that are empty, as when they are withheld.
        media = _media(pick(rng, CONVERSATIONS), [0, 0], "") if rng.random() < 0.3 else []
        encoded = _template(rng).encode(
            [(media_question(media, turn.question), pick(rng, turn.options))], self._tokenizer
        )
        ids = list(encoded.input_ids)
        return Text(input_ids=ids, labels=list(encoded.labels), media=[0] * len(ids))

    def conversation(
        self,
        rng: np.random.Generator,
        form: ConversationForm,
        *,
        template: Template | None = None,
        message: bool = False,
        only: str | None = None,
        withheld: bool = False,
    ) -> Text | None:
        """Write questions about described media, with their answers.

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
        candidates = _questions(scene, form, rng)
        if only is not None:
            candidates = [question for question in candidates if question.type == only]
        else:
            candidates = _without_rivals(candidates, rng)
        if not candidates:
            return None
        # In random order, so that no place in the conversation hints at the type.
        order = rng.permutation(len(candidates))[:MOST_TURNS]
        turns = [candidates[at] for at in order]
        # Sound before picture, as in the prompts of the chat.
        descriptions = [] if form in ("video", "image") else [describe_sound(scene, rng)]
        if form != "audio":
            descriptions.append(describe(scene, rng))
        filling = [[] if withheld else self._ids(text) for text in descriptions]
        media = _media(form, [len(ids) for ids in filling], _message(rng) if message else "")
        # The media stand in the first question; each placeholder becomes a token of a description.
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
        # What looks like a special token in a description is text, as in the chat.
        return encode_text(self._tokenizer, text, parse_special=False)

    def _filled(
        self, input_ids: Sequence[int], descriptions: Sequence[Sequence[int]]
    ) -> tuple[list[int], list[int]]:
        """Put the descriptions into their places; also returns which one each token belongs to."""
        # One placeholder stands for each token, so they are taken one by one.
        waiting = iter([(token, n) for n, ids in enumerate(descriptions, 1) for token in ids])
        filled = [next(waiting) if token == self._media_id else (token, 0) for token in input_ids]
        return [token for token, _ in filled], [number for _, number in filled]


def random_scene(rng: np.random.Generator) -> Scene:
    """Draw a scene."""
    # Only what can be said about it matters: places and sizes keep their defaults.
    roll = rng.random()
    count = 0 if roll < 0.1 else 2 if roll < 0.45 else 1
    sights = []
    for kind in _different(rng, count):
        motion = "still" if count == 2 else pick(rng, MOTIONS)
        number = 1 + int(count == 1 and rng.random() < 0.4)
        sights.append(Sight(kind=kind, colour=pick(rng, COLOURS), motion=motion, number=number))
    roll = rng.random()
    kinds = _different(rng, 0 if roll < 0.2 else 2 if roll < 0.55 else 1)
    return Scene(
        sights=tuple(sights),
        sounds=tuple(Sound(kind=kind) for kind in kinds),
        background=pick(rng, ("plain", "cluttered")),
    )


def describe(scene: Scene, rng: np.random.Generator) -> str:
    """Describe what stands where the picture would: a caption, or its key words in any order."""
    # Key words in any order teach to read words, not sentences: a branch gives no sentences.
    if rng.random() < 0.6 or not scene.sights:
        return clip_caption(scene, rng)
    things = []
    for sight in scene.sights:
        words = [ENGLISH.colours[sight.colour], ENGLISH.kinds[sight.kind]]
        if len(scene.sights) == 1:
            words += [ENGLISH.motions[sight.motion], ENGLISH.numbers[sight.number - 1]]
        things.append(" ".join(words[at] for at in rng.permutation(len(words))))
    return " then ".join(things)


def describe_sound(scene: Scene, rng: np.random.Generator) -> str:
    """Describe what stands where the sound would.

    Mostly it is what one would see of the things that are heard: the audio branch is trained on
    pictures, and conveys no more than that about sounds.
    """
    if rng.random() < 0.3:
        return sound_caption(scene, rng)
    # Two things follow one another, and stand still, as in the clips of the world.
    still = len(scene.sounds) == 2
    sights = [
        Sight(
            kind=sound.kind,
            colour=pick(rng, COLOURS),
            motion="still" if still else pick(rng, MOTIONS),
            number=1 + int(not still and rng.random() < 0.3),
        )
        for sound in scene.sounds
    ]
    return describe(replace(scene, sights=tuple(sights)), rng)


def pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    """Choose one of the items, each as likely."""
    return items[int(rng.integers(len(items)))]


def _different(rng: np.random.Generator, count: int) -> list[Kind]:
    return [KINDS[at] for at in rng.permutation(len(KINDS))[:count]]


def collate(texts: Sequence[Text]) -> tuple[Tensor, Tensor, Tensor]:
    """Make a batch: token ids, labels and numbers of media, (B, L) int64, padded on the right."""

    # Padding with id 0 is harmless: its labels are ignored, and it stands after all that counts.
    def padded(rows: list[list[int]], value: int) -> Tensor:
        return pad_sequence([torch.tensor(row) for row in rows], True, value)

    return (
        padded([text.input_ids for text in texts], 0),
        padded([text.labels for text in texts], IGNORE_INDEX),
        padded([text.media for text in texts], 0),
    )


def _questions(scene: Scene, form: str, rng: np.random.Generator) -> list[Question]:
    if form == "image":
        return picture_questions(scene, rng)
    candidates = questions(scene, rng)
    if form == "both":
        return candidates
    modality = "sound" if form == "audio" else "picture"
    return [question for question in candidates if question.modality == modality]


def _without_rivals(candidates: list[Question], rng: np.random.Generator) -> list[Question]:
    """Drop questions whose answer another one gives away."""
    dropped = {
        pair[int(rng.integers(2))]
        for pair in RIVALS
        if {q.type for q in candidates}.issuperset(pair)
    }
    return [question for question in candidates if question.type not in dropped]


def _media(form: str, lengths: Sequence[int], message: str) -> list[Media]:
    if form == "image":
        return [Media("image", lengths[0])]
    media = [Media("audio", lengths[0])] if form in ("audio", "both") else []
    if form in ("video", "both"):
        media.append(Media("video", lengths[-1], message))
    return media


def _message(rng: np.random.Generator) -> str:
    # Seconds between eight frames of clips between three and five seconds.
    step = pick(rng, (0.375, 0.4375, 0.5, 0.5625, 0.625))
    return frames_message([step * frame for frame in range(8)])


def _template(rng: np.random.Generator) -> Template:
    # The tiny preset talks in LLaMA-2's template; Vicuna's is to work, too.
    return TEMPLATES.get("llama_v2" if rng.random() < 0.7 else "vicuna")
