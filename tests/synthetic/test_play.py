"""Sounds of the world: repeatable, at any rate, and no two kinds sound alike."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from video_llama.synthetic.play import render_sound
from video_llama.synthetic.scene import KINDS, Scene, Sound
from video_llama.synthetic.splits import SOUND_RANGES, Split, generator, sample_sound

RATE = 16_000


def heard(split: Split, kind: str, number: int) -> np.ndarray:
    rng = generator(number, f"test/{split}/{kind}")
    sound = sample_sound(rng, split, kind)  # type: ignore[arg-type]
    noise = SOUND_RANGES[split].noise[0][1]
    return render_sound(Scene(sounds=(sound,), duration=2.0, noise=noise), number, rate=RATE)


def features(wave: np.ndarray) -> np.ndarray:
    """Mean pitch in octaves, its spread at a time and over time, and how uneven the loudness is."""
    window = np.lib.stride_tricks.sliding_window_view(wave, 512)[::128] * np.hanning(512)
    power = np.abs(np.fft.rfft(window, axis=1))[:, 1:] ** 2
    power = np.maximum(power - 4 * np.median(power, 1, keepdims=True) - 1e-3 * power.max(), 0)
    octaves = np.log2(np.arange(1, 257) * RATE / 512)
    level = power.sum(1) + 1e-9
    pitch = (power * octaves).sum(1) / level
    spread = np.sqrt((power * (octaves - pitch[:, None]) ** 2).sum(1) / level)
    weight = level / level.sum()
    mean = (weight * pitch).sum()
    drift = np.sqrt((weight * (pitch - mean) ** 2).sum())
    return np.array([mean, 2 * (weight * spread).sum(), 2 * drift, level.std() / level.mean()])


@pytest.mark.parametrize("split", ["valid", "test"])
def test_four_simple_features_tell_the_kinds_apart_on_other_parameters(split: Split) -> None:
    centroids = {
        kind: np.mean([features(heard("train", kind, i)) for i in range(8)], axis=0)
        for kind in KINDS
    }
    wrong = []
    for kind in KINDS:
        for number in range(12):
            found = features(heard(split, kind, number))
            nearest = min(centroids, key=lambda name: ((centroids[name] - found) ** 2).sum())
            wrong += [(kind, nearest)] if nearest != kind else []
    assert wrong == []


@pytest.mark.parametrize("kind", KINDS)
def test_sound_is_as_loud_as_it_says_at_any_rate(kind: str) -> None:
    scene = Scene(sounds=(Sound(kind=kind, loudness=0.6),), duration=1.5)  # type: ignore[arg-type]
    for rate in (8000, 16000, 44100):
        wave = render_sound(scene, 1, rate=rate)
        assert wave.shape == (round(1.5 * rate),)
        assert wave.dtype == np.float32
        assert np.abs(wave).max() == pytest.approx(0.6, abs=1e-6)


def test_same_scene_and_seed_give_the_same_sound() -> None:
    scene = Scene(sounds=(Sound(kind="drum"),), noise=0.01)
    first, second, third = (render_sound(scene, seed, rate=RATE) for seed in (1, 1, 2))
    assert np.array_equal(first, second)
    assert not np.array_equal(first, third)


def test_silence_is_hiss_of_the_stated_level_or_nothing() -> None:
    assert not render_sound(Scene(), 0, rate=RATE).any()
    assert render_sound(Scene(noise=0.005), 0, rate=RATE).std() == pytest.approx(0.005, rel=0.02)


def test_the_second_sound_takes_the_place_of_the_first() -> None:
    low, high = Sound(kind="engine"), Sound(kind="whistle")
    scene = Scene(sounds=(low, high), switch=0.45)
    wave = render_sound(scene, 0, rate=RATE)
    border = round(0.45 * 4 * RATE)
    assert features(wave[:border])[0] < 8
    assert features(wave[border:])[0] > 10.5


@pytest.mark.parametrize("kind", KINDS)
def test_pitch_moves_every_frequency(kind: str) -> None:
    sound = Sound(kind=kind)  # type: ignore[arg-type]
    scenes = [Scene(sounds=(replace(sound, pitch=pitch),), duration=2.0) for pitch in (1.0, 1.25)]
    low, high = (features(render_sound(scene, 0, rate=RATE))[0] for scene in scenes)
    assert 0.15 < high - low < 0.45  # log2(1.25) = 0.32


def test_nothing_is_louder_than_full_scale() -> None:
    scene = Scene(sounds=(Sound(kind="siren", loudness=0.95),), noise=0.2)
    assert np.abs(render_sound(scene, 0, rate=RATE)).max() == 1.0
