"""Captions say what is in the scene, and questions can be answered only by perceiving it."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from itertools import product

import pytest

from video_llama.common.io import package_file
from video_llama.synthetic.language import (
    MOVING_TYPES,
    QUESTION_TYPES,
    Question,
    clip_caption,
    picture_caption,
    picture_questions,
    questions,
    sound_caption,
)
from video_llama.synthetic.scene import COLOURS, KINDS, Scene, Sight, Sound
from video_llama.synthetic.splits import SPLITS, generator, sample_scene
from video_llama.synthetic.wording import CHINESE, ENGLISH, Wording
from video_llama.text.tokenizer import encode_text, load_tokenizer

SCENES = [sample_scene(9, split, index) for split in SPLITS for index in range(120)]
WORDINGS = {"english": ENGLISH, "chinese": CHINESE}


def asked(wording: Wording = ENGLISH) -> list[tuple[Scene, Question]]:
    return [
        (scene, question)
        for number, scene in enumerate(SCENES)
        for question in questions(scene, generator(number, "test"), wording=wording)
    ]


def named(text: str, names: tuple[str, ...]) -> list[str]:
    """The names that a sentence has, one or more of each, in its order."""
    words = [word.strip(".,").removesuffix("s") for word in text.split()]
    return [word for word in words if word in names]


def test_clip_captions_name_what_is_seen_in_its_order() -> None:
    for number, scene in enumerate(SCENES):
        text = clip_caption(scene, generator(number, "test"))
        assert named(text, KINDS) == [sight.kind for sight in scene.sights]
        assert named(text, COLOURS) == [sight.colour for sight in scene.sights]
        if len(scene.sights) == 1:
            (sight,) = scene.sights
            assert any(ways[sight.number - 1] in text for ways in ENGLISH.moves[sight.motion])
            assert ("two" in text.split()) == (sight.number == 2)


def test_picture_captions_name_what_is_seen_and_where() -> None:
    for number, scene in enumerate(s for s in SCENES if len(s.sights) < 2):
        text = picture_caption(scene, generator(number, "test"))
        assert named(text, KINDS) == [sight.kind for sight in scene.sights]
        assert ENGLISH.backgrounds[scene.background] in text


def test_sound_captions_name_what_is_heard_in_its_order() -> None:
    for number, scene in enumerate(SCENES):
        text = sound_caption(scene, generator(number, "test"))
        assert named(text, KINDS) == [sound.kind for sound in scene.sounds]


def test_answers_are_those_of_the_scene() -> None:
    bell = Sight(kind="bell", colour="red", motion="growing")
    drum = Sight(kind="drum", colour="blue", motion="still", number=2)
    scene = Scene(sights=(bell,), sounds=(Sound(kind="engine"),))

    def answers(scene: Scene) -> dict[str, str]:
        return {q.type: q.answer for q in questions(scene, generator(0, "test"))}

    assert answers(scene) == {
        "kind": "bell",
        "colour": "red",
        "motion": "growing",
        "count": "one",
        "see": "a bell",
        "empty": "no",
        "hear": "an engine",
        "silent": "no",
    }
    assert answers(replace(scene, sights=(drum,), sounds=())) == {
        "kind": "drum",
        "colour": "blue",
        "motion": "still",
        "count": "two",
        "empty": "no",
        "hear_nothing": "nothing",
        "silent": "yes",
    }
    sounds = (Sound(kind="bird"), Sound(kind="bell"))
    assert answers(Scene(sights=(drum, bell), sounds=sounds)) == {
        "order": "the drum",
        "empty": "no",
        "sound_order": "the bird",
        "silent": "no",
    }
    assert answers(Scene(sounds=sounds[:1])) == {
        "see_nothing": "nothing",
        "empty": "yes",
        "hear": "a bird",
        "silent": "no",
    }


@pytest.mark.parametrize("name", WORDINGS)
def test_every_type_is_asked_with_its_chance(name: str) -> None:
    chances = {q.type: q.chance for _, q in asked(WORDINGS[name])}
    assert set(chances) == set(QUESTION_TYPES)
    assert chances["kind"] == chances["colour"] == chances["see"] == chances["hear"] == 1 / 6
    assert chances["motion"] == chances["see_nothing"] == chances["hear_nothing"] == 1 / 7
    assert chances["order"] == chances["sound_order"] == chances["count"] == 1 / 2
    assert all(q.answer in q.options for _, q in asked(WORDINGS[name]))


@pytest.mark.parametrize("name", WORDINGS)
def test_questions_do_not_contain_what_they_ask_for(name: str) -> None:
    for _, question in asked(WORDINGS[name]):
        if question.type not in ("order", "sound_order", "count", "empty", "silent"):
            assert not any(option in question.question.split() for option in question.options)
            assert question.answer not in question.question


def test_wording_is_the_same_for_every_answer() -> None:
    forms = defaultdict(Counter)
    for _, question in asked():
        if question.type not in ("order", "sound_order"):
            forms[question.type, question.answer][question.question] += 1
    for (kind, answer), counts in forms.items():
        assert set(counts) == set(ENGLISH.questions[kind]), (kind, answer)
        assert max(counts.values()) < 3 * min(counts.values()) + 12, (kind, answer)


def test_the_first_name_in_a_question_of_order_is_the_answer_half_of_the_time() -> None:
    for kind in ("order", "sound_order"):
        found = [q for _, q in asked() if q.type == kind]
        share = sum(q.options[0] == q.answer for q in found) / len(found)
        assert 0.38 < share < 0.62
        assert all(q.question.index(q.options[0]) < q.question.index(q.options[1]) for q in found)


def test_motions_know_their_opposite() -> None:
    found = {q.answer: q.opposite for _, q in asked() if q.type == "motion"}
    assert found["left"] == "right"
    assert found["shrinking"] == "growing"
    assert found["still"] is None


def test_pictures_are_asked_nothing_that_takes_time() -> None:
    for scene in SCENES:
        types = {q.type for q in picture_questions(scene, generator(0, "test"))}
        assert not types & {*MOVING_TYPES, "hear", "silent"}


def test_texts_fit_into_the_tokens_of_a_caption() -> None:
    tokenizer = load_tokenizer(package_file("presets/tiny/llama"))
    for (number, scene), wording in product(enumerate(SCENES[::3]), WORDINGS.values()):
        rng = generator(number, "test")
        texts = [clip_caption(scene, rng, wording=wording)]
        texts.append(sound_caption(scene, rng, wording=wording))
        texts += [q.question for q in questions(scene, rng, wording=wording)]
        for text in texts:
            ids = encode_text(tokenizer, text, parse_special=False)
            assert len(ids) < 30, text
            assert min(ids) >= 259, f"{text} needs bytes"
