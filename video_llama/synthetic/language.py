"""What can be said about a scene: captions, and questions with their answers.

The generator `rng` chooses the words, in the language of `wording`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeVar, get_args

import numpy as np

from video_llama.synthetic.scene import OPPOSITES, Scene, Sight, Sound
from video_llama.synthetic.wording import ENGLISH, QuestionType, Theme, Wording

T = TypeVar("T")

QUESTION_TYPES: tuple[QuestionType, ...] = get_args(QuestionType)
"""Every type of question."""

SOUND_TYPES: tuple[QuestionType, ...] = ("hear", "hear_nothing", "sound_order", "silent")
"""Questions that the sound answers; the picture answers the others."""

MOVING_TYPES: tuple[QuestionType, ...] = ("motion", "order")
"""Questions that no single frame answers."""

ORDER_TYPES: tuple[QuestionType, ...] = ("order", "sound_order")
"""Questions that name two things to choose from."""


@dataclass(frozen=True, kw_only=True)
class Question:
    """A question about a scene.

    Attributes:
        type: what it asks for.
        question: the question.
        answer: the answer, a word or two.
        options: what might be the answer if one did not know, each as likely as the others.
        opposite: of a motion, the answer that the same frames in reverse order would have.
    """

    type: QuestionType
    question: str
    answer: str
    options: tuple[str, ...]
    opposite: str | None = None

    @property
    def chance(self) -> float:
        """Return the share of right answers of a guesser."""
        return 1 / len(self.options)

    @property
    def modality(self) -> Literal["picture", "sound"]:
        """Name what one must perceive to answer."""
        return "sound" if self.type in SOUND_TYPES else "picture"


def clip_caption(scene: Scene, rng: np.random.Generator, *, wording: Wording = ENGLISH) -> str:
    """Write one sentence about what is seen in a clip."""
    if not scene.sights:
        return _pick(rng, wording.captions["empty"])
    things = [_thing(sight, wording) for sight in scene.sights]
    if len(things) == 2:
        template = _pick(rng, wording.captions["order"])
        return template.format(first=things[0], second=things[1])
    sight = scene.sights[0]
    moves = _pick(rng, wording.moves[sight.motion])[sight.number - 1]
    return _pick(rng, wording.captions["moving"]).format(thing=things[0], moves=moves)


def picture_caption(scene: Scene, rng: np.random.Generator) -> str:
    """Write one English sentence about the first frame of a scene."""
    thing = _thing(scene.sights[0], ENGLISH) if scene.sights else ENGLISH.nothing
    background = ENGLISH.backgrounds[scene.background]
    return _pick(rng, ENGLISH.captions["picture"]).format(thing=thing, background=background)


def sound_caption(scene: Scene, rng: np.random.Generator, *, wording: Wording = ENGLISH) -> str:
    """Write one sentence about what is heard."""
    things = [wording.kinds_with_article[sound.kind] for sound in scene.sounds]
    theme: Theme = ("silent", "sound", "sound_order")[len(things)]
    names = dict(zip(("first", "second") if len(things) == 2 else ("thing",), things, strict=False))
    return _pick(rng, wording.captions[theme]).format(**names)


def questions(
    scene: Scene, rng: np.random.Generator, *, wording: Wording = ENGLISH
) -> list[Question]:
    """Ask one question of every type that makes sense of a scene.

    The words of a question are chosen without regard to its answer.
    """
    return [*_sight_questions(scene, rng, wording), *_sound_questions(scene, rng, wording)]


def picture_questions(scene: Scene, rng: np.random.Generator) -> list[Question]:
    """Ask in English what the first frame of a scene with at most one sight answers."""
    found = _sight_questions(scene, rng, ENGLISH)
    return [question for question in found if question.type not in MOVING_TYPES]


def reworded(question: Question, number: int) -> Question:
    """Reword a question in English, with words chosen by a number instead of by chance.

    Args:
        number: which of the ways to ask it; any number will do.
    """
    templates = ENGLISH.questions[question.type]
    if question.type not in ORDER_TYPES:
        return replace(question, question=templates[number % len(templates)])
    turned, number = number % 2, number // 2
    this, that = sorted(question.options, reverse=bool(turned))
    text = templates[number % len(templates)].format(this=this, that=that)
    return replace(question, question=text, options=(this, that))


def _sight_questions(scene: Scene, rng: np.random.Generator, wording: Wording) -> list[Question]:
    found = [_yes_no("empty", not scene.sights, rng, wording)]
    kinds = wording.kinds_with_article
    if not scene.sights:
        found.append(_nothing("see_nothing", rng, wording))
    elif len(scene.sights) == 2:
        found.append(_order("order", scene.sights, rng, wording))
    else:
        (sight,) = scene.sights
        found += [
            _ask("kind", rng, wording, wording.kinds[sight.kind], wording.kinds.values()),
            _ask("colour", rng, wording, wording.colours[sight.colour], wording.colours.values()),
            _motion(sight, rng, wording),
            _ask("count", rng, wording, wording.numbers[sight.number - 1], wording.numbers),
        ]
        if sight.number == 1:
            found.append(_ask("see", rng, wording, kinds[sight.kind], kinds.values()))
    return found


def _sound_questions(scene: Scene, rng: np.random.Generator, wording: Wording) -> list[Question]:
    found = [_yes_no("silent", scene.silent, rng, wording)]
    kinds = wording.kinds_with_article
    if scene.silent:
        found.append(_nothing("hear_nothing", rng, wording))
    elif len(scene.sounds) == 2:
        found.append(_order("sound_order", scene.sounds, rng, wording))
    else:
        found.append(_ask("hear", rng, wording, kinds[scene.sounds[0].kind], kinds.values()))
    return found


def _ask(
    kind: QuestionType,
    rng: np.random.Generator,
    wording: Wording,
    answer: str,
    options: Iterable[str],
    **names: str,
) -> Question:
    text = _pick(rng, wording.questions[kind]).format(**names)
    return Question(type=kind, question=text, answer=answer, options=tuple(options))


def _yes_no(kind: QuestionType, true: bool, rng: np.random.Generator, wording: Wording) -> Question:
    yes, no = wording.yes_no
    return _ask(kind, rng, wording, yes if true else no, wording.yes_no)


def _nothing(kind: QuestionType, rng: np.random.Generator, wording: Wording) -> Question:
    options = [*wording.kinds_with_article.values(), wording.nothing]
    return _ask(kind, rng, wording, wording.nothing, options)


def _motion(sight: Sight, rng: np.random.Generator, wording: Wording) -> Question:
    answer = wording.motions[sight.motion]
    question = _ask("motion", rng, wording, answer, wording.motions.values())
    other = OPPOSITES.get(sight.motion)
    return replace(question, opposite=wording.motions[other] if other else None)


def _order(
    kind: QuestionType,
    parts: Sequence[Sight] | Sequence[Sound],
    rng: np.random.Generator,
    wording: Wording,
) -> Question:
    """Ask which of two comes first; each is named first in half of the questions."""
    names = [wording.known_kinds[part.kind] for part in parts]
    this, that = names if rng.random() < 0.5 else names[::-1]
    return _ask(kind, rng, wording, names[0], (this, that), this=this, that=that)


def _thing(sight: Sight, wording: Wording) -> str:
    names = {"colour": wording.colours[sight.colour], "kind": wording.kinds[sight.kind]}
    return wording.things[sight.number - 1].format(**names)


def _pick(rng: np.random.Generator, items: Sequence[T]) -> T:
    return items[int(rng.integers(len(items)))]
