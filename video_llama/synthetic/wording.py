"""The words of the world, in English and in Chinese.

In templates `{thing}` is one thing or two with their colour, `{moves}` what they do, `{first}` and
`{second}` what follows one another, `{this}` and `{that}` two kinds to choose from.
"""
# ruff: noqa: RUF001 - the Chinese sentences have Chinese punctuation.

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

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


_SEE = ("What do you see?", "What can you see?", "What is there to see?")
_HEAR = ("What do you hear?", "What can you hear?", "What is there to hear?")

ENGLISH = Wording(
    kinds={
        "bell": "bell",
        "drum": "drum",
        "bird": "bird",
        "siren": "siren",
        "whistle": "whistle",
        "engine": "engine",
    },
    kinds_with_article={
        "bell": "a bell",
        "drum": "a drum",
        "bird": "a bird",
        "siren": "a siren",
        "whistle": "a whistle",
        "engine": "an engine",
    },
    known_kinds={
        "bell": "the bell",
        "drum": "the drum",
        "bird": "the bird",
        "siren": "the siren",
        "whistle": "the whistle",
        "engine": "the engine",
    },
    colours={
        "red": "red",
        "green": "green",
        "blue": "blue",
        "yellow": "yellow",
        "white": "white",
        "purple": "purple",
    },
    moves={
        "left": (("moves left", "move left"), ("goes to the left", "go to the left")),
        "right": (("moves right", "move right"), ("goes to the right", "go to the right")),
        "up": (("moves up", "move up"), ("goes up", "go up")),
        "down": (("moves down", "move down"), ("goes down", "go down")),
        "growing": (("is growing", "are growing"), ("grows", "grow")),
        "shrinking": (("is shrinking", "are shrinking"), ("shrinks", "shrink")),
        "still": (("stands still", "stand still"), ("is still", "are still")),
    },
    motions={
        "left": "left",
        "right": "right",
        "up": "up",
        "down": "down",
        "growing": "growing",
        "shrinking": "shrinking",
        "still": "still",
    },
    numbers=("one", "two"),
    things=("a {colour} {kind}", "two {colour} {kind}s"),
    backgrounds={"plain": " on a plain background", "cluttered": " on a busy background"},
    nothing="nothing",
    yes_no=("yes", "no"),
    captions={
        "moving": (
            "{thing} {moves}",
            "{thing} that {moves}",
            "here {thing} {moves}",
            "you see that {thing} {moves}",
        ),
        "order": (
            "first {first}, then {second}",
            "{first} and then {second}",
            "{first} comes first, then {second}",
            "first you see {first}, then {second}",
        ),
        "empty": ("nothing", "there is nothing to see", "an empty picture", "you see nothing"),
        "picture": (
            "The picture shows {thing}{background}.",
            "This is a picture of {thing}{background}.",
            "You see {thing}{background}.",
            "There is {thing}{background} in the picture.",
        ),
        "sound": ("the sound of {thing}", "{thing} sounds", "you hear {thing}"),
        "sound_order": (
            "first the sound of {first}, then of {second}",
            "first you hear {first}, then {second}",
            "{first} sounds and then {second}",
        ),
        "silent": ("nothing", "there is nothing to hear", "it is silent", "you hear nothing"),
    },
    questions={
        "kind": ("What thing is it?", "Which thing is shown?", "What kind of thing is it?"),
        "colour": ("What colour is it?", "Which colour does it have?", "What is its colour?"),
        "motion": ("How does it move?", "What does it do?", "How is it moving?"),
        "count": ("How many things are there?", "How many do you see?", "Is it one or two?"),
        "order": (
            "Which comes first, {this} or {that}?",
            "What do you see first, {this} or {that}?",
            "Which is shown first, {this} or {that}?",
        ),
        "see": _SEE,
        "see_nothing": _SEE,
        "empty": ("Is it empty?", "Is there nothing to see?", "Do you see nothing?"),
        "hear": _HEAR,
        "hear_nothing": _HEAR,
        "sound_order": (
            "Which sound comes first, {this} or {that}?",
            "What do you hear first, {this} or {that}?",
            "Which is heard first, {this} or {that}?",
        ),
        "silent": ("Is it silent?", "Is there nothing to hear?", "Do you hear nothing?"),
    },
)
"""English."""

_CHINESE_KINDS: dict[Kind, str] = {
    "bell": "铃",
    "drum": "鼓",
    "bird": "鸟",
    "siren": "警笛",
    "whistle": "哨子",
    "engine": "引擎",
}
_CHINESE_SEE = ("你看到了什么？", "看到的是什么？")
_CHINESE_HEAR = ("你听到了什么？", "听到的是什么？")

CHINESE = Wording(
    kinds=_CHINESE_KINDS,
    kinds_with_article=_CHINESE_KINDS,
    known_kinds=_CHINESE_KINDS,
    colours={
        "red": "红色",
        "green": "绿色",
        "blue": "蓝色",
        "yellow": "黄色",
        "white": "白色",
        "purple": "紫色",
    },
    moves={
        "left": (("向左移动", "向左移动"),),
        "right": (("向右移动", "向右移动"),),
        "up": (("向上移动", "向上移动"),),
        "down": (("向下移动", "向下移动"),),
        "growing": (("变大", "变大"),),
        "shrinking": (("变小", "变小"),),
        "still": (("静止不动", "静止不动"),),
    },
    motions={
        "left": "向左",
        "right": "向右",
        "up": "向上",
        "down": "向下",
        "growing": "变大",
        "shrinking": "变小",
        "still": "静止",
    },
    numbers=("一个", "两个"),
    things=("一个{colour}的{kind}", "两个{colour}的{kind}"),
    backgrounds={"plain": "", "cluttered": ""},
    nothing="没有",
    yes_no=("是", "不是"),
    captions={
        "moving": ("{thing}{moves}", "有{thing}{moves}"),
        "order": ("先有{first}，然后有{second}",),
        "empty": ("没有", "什么也没有"),
        "picture": ("有{thing}。", "这是{thing}。"),
        "sound": ("{thing}的声音", "听到{thing}"),
        "sound_order": ("先听到{first}，然后听到{second}",),
        "silent": ("没有声音",),
    },
    questions={
        "kind": ("这是什么？", "它是什么？"),
        "colour": ("它是什么颜色？", "什么颜色？"),
        "motion": ("它向哪里移动？", "它在做什么？"),
        "count": ("有多少？", "有一个还是两个？"),
        "order": ("先看到什么，{this}还是{that}？",),
        "see": _CHINESE_SEE,
        "see_nothing": _CHINESE_SEE,
        "empty": ("什么也没有？",),
        "hear": _CHINESE_HEAR,
        "hear_nothing": _CHINESE_HEAR,
        "sound_order": ("先听到什么，{this}还是{that}？",),
        "silent": ("没有声音？",),
    },
)
"""Chinese."""
