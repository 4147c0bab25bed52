"""Write the annotation files of the world, in the formats of the data sets they stand for.

Pairs of a file and a question about it come in the order of their files.
"""

from __future__ import annotations

import csv
import io
import json
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from video_llama.synthetic.language import (
    ORDER_TYPES,
    Question,
    clip_caption,
    picture_caption,
    picture_questions,
    questions,
    reworded,
    sound_caption,
)
from video_llama.synthetic.media import WorldItem
from video_llama.synthetic.splits import generator
from video_llama.synthetic.wording import CHINESE, ENGLISH, Wording

ItemQuestion = tuple[WorldItem, Question]

CHINESE_EVERY = 4
"""Of so many clips one has questions in Chinese."""

RIVALS = (("kind", "see"), ("empty", "see_nothing"))
"""Types of questions that one conversation does not have both of."""


def webvid_table(clips: Sequence[WorldItem]) -> str:
    """Write WebVid's table of clips with captions."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(("videoid", "duration", "page_dir", "name"))
    for clip in clips:
        caption = clip_caption(clip.scene, clip.rng("caption"))
        table.writerow((clip.name, f"{clip.scene.duration:g}", clip.page_dir, caption))
    return text.getvalue()


def webvid_instruct(clips: Sequence[WorldItem], *, chinese: bool = False) -> str:
    """Write VideoChat's instructions: conversations about what is seen in clips.

    Args:
        chinese: in Chinese, about some of them, instead of in English.
    """
    chosen = clips[::CHINESE_EVERY] if chinese else clips
    wording = CHINESE if chinese else ENGLISH
    pairs = [pair for pair in ask(chosen, wording) if pair[1].modality == "picture"]
    return _json(
        [
            {
                "video": f"{clip.page_dir}/{clip.name}.mp4",
                "QA": [{"q": turn.question, "a": turn.answer} for turn in turns],
            }
            for clip, turns in conversations(balanced(without_rivals(pairs)))
        ]
    )


def cc_sbu_align(pictures: Sequence[WorldItem]) -> str:
    """Write the data of MiniGPT-4's second stage: pictures with captions."""
    annotations = [
        {"image_id": item.name, "caption": picture_caption(item.scene, item.rng("caption"))}
        for item in pictures
    ]
    return _json({"annotations": annotations})


def llava_instruct(pictures: Sequence[WorldItem]) -> str:
    """Write LLaVA's instructions: conversations about pictures."""
    pairs = [
        (item, question)
        for item in pictures
        for question in picture_questions(item.scene, item.rng("questions"))
    ]
    entries = []
    for item, turns in conversations(balanced(without_rivals(pairs))):
        sentences = []
        for number, turn in enumerate(turns):
            mark = "" if number else "<image>\n"
            sentences.append({"from": "human", "value": mark + turn.question})
            sentences.append({"from": "gpt", "value": turn.answer})
        entry = {"id": item.name, "image": f"{item.name}.jpg", "conversations": sentences}
        entries.append(entry)
    return _json(entries)


def audio_caption(sounds: Sequence[WorldItem]) -> str:
    """Write sounds with captions."""
    return _json(
        [
            {
                "audio": f"{item.name}.wav",
                "caption": sound_caption(item.scene, item.rng("caption")),
            }
            for item in sounds
        ]
    )


def evaluation(clips: Sequence[WorldItem]) -> str:
    """Write questions to score a model with, each with what tells skill from luck.

    They stand in rounds: in a round every answer to a type is right once, and all are asked in the
    same words. So whatever is answered without the clips is right exactly as often as by chance,
    also in as many rounds as one likes from the beginning.
    """
    pairs = [pair for pair in ask(clips, ENGLISH) if _is_scored(*pair)]
    return _json([_scored(item, question) for item, question in rounds(pairs)])


def ask(items: Sequence[WorldItem], wording: Wording) -> list[ItemQuestion]:
    """Ask every question that the scenes of clips allow."""
    return [
        (item, question)
        for item in items
        for question in questions(item.scene, item.rng("questions"), wording=wording)
    ]


def balanced(pairs: Sequence[ItemQuestion]) -> list[ItemQuestion]:
    """Keep as many questions as leave every answer to a type equally frequent.

    Types of which only one answer occurs keep all. Clips in which sound and picture contradict each
    other are counted apart.

    Returns:
        Those kept, in the same order.
    """
    kept = sorted(place for group in _rounds(pairs) for row in group for place in row)
    return [pairs[place] for place in kept]


def rounds(pairs: Sequence[ItemQuestion]) -> list[ItemQuestion]:
    """Order questions in rounds: every answer once, all in the same words.

    Of questions of order, every pair of things has rounds of its own.
    """
    # Rounds of all types take turns, so that any number of rounds from the start is balanced.
    found = []
    for first, group in enumerate(_rounds(pairs, by_pair=True)):
        for number, row in enumerate(group):
            # Pairs of things begin with different words, because some have few rounds.
            texts = [(pairs[at][0], reworded(pairs[at][1], number + first)) for at in row]
            found.append((number, first, texts))
    found.sort(key=lambda entry: entry[:2])
    return [pair for _, _, texts in found for pair in texts]


def _rounds(pairs: Sequence[ItemQuestion], *, by_pair: bool = False) -> list[list[tuple[int, ...]]]:
    """List, for each group of comparable questions, its rounds: one place for each answer."""
    groups: dict[tuple[str, ...], dict[str, list[int]]] = defaultdict(lambda: defaultdict(list))
    for place, (item, question) in enumerate(pairs):
        pair = sorted(question.options) if by_pair and question.type in ORDER_TYPES else ()
        key = (question.type, str(item.scene.contradictory), *pair)
        groups[key][question.answer].append(place)
    found = []
    for (kind, _, *pair), answers in groups.items():
        if pair and len(answers) < 2:
            continue  # the other order of this pair does not occur
        # The rarest answer bounds the rounds; which questions are kept of the others is random,
        # but a function of the world's seed.
        count = min(map(len, answers.values()))
        chosen = []
        for places in answers.values():
            first = pairs[places[0]][0]
            order = generator(first.world.seed, f"balance/{kind}", first.index).permutation
            chosen.append([places[at] for at in order(len(places))[:count]])
        found.append(list(zip(*chosen, strict=True)))
    return found


def without_rivals(pairs: Sequence[ItemQuestion]) -> list[ItemQuestion]:
    """Drop questions whose answer another question about the same file gives away."""
    types: dict[WorldItem, set[str]] = defaultdict(set)
    for item, question in pairs:
        types[item].add(question.type)
    dropped = {item: _one_of_each_rivals(item, found) for item, found in types.items()}
    return [(item, question) for item, question in pairs if question.type not in dropped[item]]


def _one_of_each_rivals(item: WorldItem, types: set[str]) -> set[str]:
    rng = item.rng("rivals")
    return {pair[int(rng.integers(2))] for pair in RIVALS if types.issuperset(pair)}


def conversations(pairs: Sequence[ItemQuestion]) -> list[tuple[WorldItem, list[Question]]]:
    """Order the questions about each file as the turns of a conversation, at random."""
    turns: dict[WorldItem, list[Question]] = defaultdict(list)
    for item, question in pairs:
        turns[item].append(question)
    return [
        (item, [several[at] for at in item.rng("conversation").permutation(len(several))])
        for item, several in turns.items()
    ]


def _is_scored(item: WorldItem, question: Question) -> bool:
    """Tell whether a question is scored: of contradictory clips, only what is seen or heard."""
    return not item.scene.contradictory or question.type in ("see", "hear")


def _scored(item: WorldItem, question: Question) -> dict[str, Any]:
    scene = item.scene
    return {
        "id": f"{item.name}_{question.type}",
        "path": item.path.removeprefix(f"{item.split}/"),
        "question": question.question,
        "answer": question.answer,
        "type": question.type,
        "modality": question.modality,
        "options": list(question.options),
        "chance": question.chance,
        "opposite": question.opposite,
        "contradictory": scene.contradictory,
        "seen": [
            {"kind": s.kind, "colour": s.colour, "motion": s.motion, "number": s.number}
            for s in scene.sights
        ],
        "heard": [sound.kind for sound in scene.sounds],
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=1, ensure_ascii=False) + "\n"
