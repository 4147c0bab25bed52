"""docs/world.md is precise enough: what is drawn and played from it alone is the same world."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from tests.synthetic import other_hands as others
from tests.synthetic.other_hands import Easel, Film, Noise, Thing
from video_llama.apps.evaluate.examine import Examiner
from video_llama.apps.evaluate.questions import read_questions
from video_llama.apps.evaluate.scores import Score, scores_of
from video_llama.common.io import default_config_path
from video_llama.config.build import build_model
from video_llama.config.load import load_config
from video_llama.processors.media import probe
from video_llama.synthetic.draw import render_frames
from video_llama.synthetic.language import ENGLISH
from video_llama.synthetic.media import World
from video_llama.synthetic.play import render_sound
from video_llama.synthetic.scene import COLOURS, KINDS, MOTIONS, Scene, Sight, Sound
from video_llama.synthetic.splits import split_of
from video_llama.synthetic.write import write_world

RATE = 16_000


@pytest.mark.parametrize("kind", KINDS)
def test_looks_are_the_documented_ones(kind: str) -> None:
    for number, colour in enumerate(COLOURS):
        thing = {"kind": kind, "colour": colour, "size": 0.6, "x": 0.45, "y": 0.55}
        scene = Scene(sights=(Sight(motion="still", **thing),))  # type: ignore[arg-type]
        ours = render_frames(scene, number, height=240, width=320, times=[0.0])[0]
        theirs = Easel(320, 240, ours[0, 0]).frame([Thing(**thing)])  # type: ignore[arg-type]
        difference = np.abs(ours.astype(int) - theirs)
        assert difference.mean() < 0.5
        assert (difference.max(axis=-1) > 60).mean() < 5e-4, "more than a rim differs"


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("number", [1, 2])
def test_motions_are_the_documented_ones(motion: str, number: int) -> None:
    speed = 1.8 if motion in ("growing", "shrinking") else 0.0 if motion == "still" else 0.3
    values = {
        "kind": "bird", "colour": "white", "motion": motion, "number": number,
        "size": 0.3, "x": 0.52, "y": 0.49, "speed": speed, "stacked": motion in ("left", "right"),
    }  # fmt: skip
    scene = Scene(sights=(Sight(**values),))  # type: ignore[arg-type]
    times = [0.0, 0.3, 0.6, 0.9, 0.95]
    ours = render_frames(scene, 0, height=120, width=120, times=times)
    easel = Easel(120, 120, ours[0, 0, 0])
    for frame, time in zip(ours, times, strict=True):
        theirs = easel.frame(others.moved(Thing(**values), time))  # type: ignore[arg-type]
        assert np.abs(frame.astype(int) - theirs).mean() < 0.8


def bands(wave: np.ndarray) -> np.ndarray:
    """Loudness in 40 bands up to 8 kHz, and of how much it comes and goes 60 times a second."""
    pieces = wave[: len(wave) // 256 * 256].reshape(-1, 256)
    power = np.abs(np.fft.rfft(pieces * np.hanning(256), axis=1)) ** 2
    tones = np.log10(power.mean(axis=0)[1:121].reshape(40, 3).sum(axis=1) + 1e-3)
    levels = np.sqrt((pieces**2).mean(axis=1))
    rhythm = np.abs(np.fft.rfft(levels - levels.mean()))[1:121] / levels.sum()
    return np.concatenate([tones, 5 * rhythm.reshape(-1, 3).max(axis=1)])


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("pitch", "tempo"), [(1.0, 1.0), (0.78, 1.3)])
def test_sounds_are_the_documented_ones(kind: str, pitch: float, tempo: float) -> None:
    def ours(name: str, seed: int) -> np.ndarray:
        sound = Sound(kind=name, pitch=pitch, tempo=tempo, loudness=0.5)  # type: ignore[arg-type]
        return bands(render_sound(Scene(sounds=(sound,), noise=0.002), seed, rate=RATE))

    noise = Noise(kind, pitch, tempo, 0.5)
    rng = np.random.default_rng(0)
    film = Film((), (noise,), 4.0, hiss=0.002)
    theirs = np.mean([bands(others.sound_of(film, RATE, rng)) for _ in range(4)], axis=0)
    typical = {name: np.mean([ours(name, n) for n in range(4)], axis=0) for name in KINDS}
    far = {name: float(np.abs(typical[name] - theirs).mean()) for name in KINDS}
    assert min(far, key=lambda name: far[name]) == kind
    assert far[kind] < 0.1, far


def test_loudness_and_hiss_are_the_documented_ones() -> None:
    rng = np.random.default_rng(0)
    loud = others.sound_of(Film((), (Noise("bell", loudness=0.7),), 4.0, hiss=0.0), RATE, rng)
    assert np.abs(loud).max() == pytest.approx(0.7)
    assert others.sound_of(Film((), (), 4.0, hiss=0.01), RATE, rng).std() == pytest.approx(
        0.01, rel=0.05
    )


def test_films_show_what_is_held_out_and_ask_in_known_words() -> None:
    films = list(others.films(0))
    assert len(films) >= 30
    asked = Counter(kind for _, questions in films for kind, _, _ in questions)
    assert set(asked) == {"kind", "colour", "motion", "order", "hear", "sound_order", "silent"}
    assert min(asked.values()) >= 12
    for film, questions in films:
        for thing in film.things:
            assert split_of(thing.kind, thing.colour, thing.motion) == "test"  # type: ignore[arg-type]
        for kind, text, _ in questions:
            ways = ENGLISH.questions[kind]  # type: ignore[index]
            assert any(text.startswith(way.split("{")[0]) for way in ways)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_films_are_answered_as_well_as_our_clips(tmp_path: Path) -> None:
    cfg = load_config(default_config_path())
    if cfg.model.random_init:
        pytest.skip("the tiny preset has random weights: nothing can be asked of it")
    films = others.write_films(tmp_path / "films")
    formats = {probe(path).fps for path in films.parent.glob("film_0*")}
    assert len(formats) == len(others.FORMATS)
    write_world(tmp_path / "ours", num_clips=160, world=World(seed=7), splits=("test",))
    examiner = Examiner(build_model(cfg))
    theirs = scores(examiner, films)
    ours = scores(examiner, tmp_path / "ours/test/questions.json")
    report = {kind: (theirs[kind].to_json(), ours[kind].to_json()) for kind in theirs}
    worse = [k for k in theirs if theirs[k].interval[1] < ours[k].interval[0]]
    assert worse == [], json.dumps(report, indent=1)
    assert all(score.interval[1] > 0.9 for score in theirs.values()), json.dumps(report, indent=1)


def scores(examiner: Examiner, path: Path) -> dict[str, Score]:
    """The score of every type, all media given."""
    questions = read_questions(path, path.parent, limit=42)
    clips = {q.path: examiner.read(q.path) for q in questions}
    return {score.type: score for score in scores_of(examiner.ask(questions, clips, "all"))}
