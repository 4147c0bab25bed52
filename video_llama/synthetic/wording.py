"""The words of the world, in English and in Chinese; they stand in wording.yaml.

In templates `{thing}` is one thing or two with their colour, `{moves}` what they do, `{first}` and
`{second}` what follows one another, `{this}` and `{that}` two kinds to choose from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import yaml

from video_llama.common.io import package_file
from video_llama.synthetic.scene import Background, Colour, Kind, Motion

QuestionType = Literal[
    "kind",
    "colour",
    "motion",
    "count",
    "order",
    "see",
    "see_nothing",
    "empty",
    "hear",
    "hear_nothing",
    "sound_order",
    "silent",
]
Theme = Literal["moving", "order", "empty", "picture", "sound", "sound_order", "silent"]


@dataclass(frozen=True, kw_only=True)
class Wording:
    """How one language says what there is to say.

    Attributes:
        kinds: names of the things.
        kinds_with_article: the same for one thing of them, as an answer.
        known_kinds: the same for a thing that was already named.
        colours: names of the colours.
        moves: what one thing does, and what two do; several ways to say it.
        motions: the same as an answer.
        numbers: one and two, as answers.
        things: one thing and two, with `{colour}` and `{kind}`.
        backgrounds: where a thing is, with a leading space where the language has spaces.
        nothing: the answer where there is nothing to see or to hear.
        yes_no: the answers yes and no.
        captions: templates of captions.
        questions: templates of questions.
    """

    kinds: dict[Kind, str]
    kinds_with_article: dict[Kind, str]
    known_kinds: dict[Kind, str]
    colours: dict[Colour, str]
    moves: dict[Motion, tuple[tuple[str, str], ...]]
    motions: dict[Motion, str]
    numbers: tuple[str, str]
    things: tuple[str, str]
    backgrounds: dict[Background, str]
    nothing: str
    yes_no: tuple[str, str]
    captions: dict[Theme, tuple[str, ...]]
    questions: dict[QuestionType, tuple[str, ...]]


def _read(language: str) -> Wording:
    """Read the words of one language; lists become tuples, which are as constant as words are."""

    def frozen(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: frozen(entry) for key, entry in value.items()}
        return tuple(map(frozen, value)) if isinstance(value, list) else value

    words = yaml.safe_load(package_file("synthetic/wording.yaml").read_text("utf-8"))
    return Wording(**frozen(words[language]))


ENGLISH = _read("english")
CHINESE = _read("chinese")
