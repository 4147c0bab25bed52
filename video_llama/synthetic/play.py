"""Play a scene: a pure function of the scene and a seed, at any sample rate.

Every voice is a function of time that repeats; frequencies are factors of `pitch`, rhythms of
`tempo`. A whole voice has the largest amplitude 1 before its loudness is applied.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from video_llama.synthetic.scene import Kind, Scene, Sound
from video_llama.synthetic.splits import generator

Wave = NDArray[np.float64]
Voice = Callable[[Wave, Sound, float, np.random.Generator], Wave]

FADE = 0.01
"""Seconds in which a sound comes and goes at its borders."""

BELL_PARTIALS = ((1.0, 1.0), (2.0, 0.6), (2.76, 0.5), (5.4, 0.25))
"""Frequency over the lowest one, and amplitude, of what a bell rings with."""


def render_sound(scene: Scene, seed: int, *, rate: int) -> NDArray[np.float32]:
    """Play a scene.

    Args:
        scene: what to play; a silent one is hiss only.
        seed: of the hiss, of where in its rhythm a sound begins, and of what is noise in it.
        rate: samples per second.

    Returns:
        (L,) float32 in -1..1, with L = duration x rate.
    """
    length = round(scene.duration * rate)
    wave = scene.noise * generator(seed, "hiss").standard_normal(length)
    spans = scene.spans(len(scene.sounds))
    for number, (sound, (begin, end)) in enumerate(zip(scene.sounds, spans, strict=True)):
        first, last = round(begin * length), round(end * length)
        rng = generator(seed, "sound", number)
        wave[first:last] += render_voice(sound, rng, num_samples=last - first, rate=rate)
    return np.clip(wave, -1.0, 1.0).astype(np.float32)


def render_voice(
    sound: Sound, rng: np.random.Generator, *, num_samples: int, rate: int
) -> NDArray[np.float64]:
    """Play one sound alone.

    Args:
        rng: where in its rhythm it begins, and what is noise in it.
        rate: samples per second.

    Returns:
        (num_samples,) float64 with the largest amplitude `sound.loudness`.
    """
    time = np.arange(num_samples) / rate
    # All sounds have begun before they are heard, somewhere in the last second.
    wave = VOICES[sound.kind](time + rng.random(), sound, rate, rng)
    wave = wave * np.minimum(1.0, np.minimum(time, time[::-1]) / FADE)
    return sound.loudness * wave / max(float(np.abs(wave).max(initial=0.0)), 1e-9)


def _since_beat(time: Wave, period: float) -> tuple[Wave, Wave]:
    """Return the seconds since the last of regular beats, and the number of that beat."""
    beat = np.floor(time / period)
    return time - beat * period, beat


def _tone(phase: Wave) -> Wave:
    tone: Wave = np.sin(2 * math.pi * phase)
    return tone


def _bell(time: Wave, sound: Sound, rate: float, rng: np.random.Generator) -> Wave:
    """Strike twice a second: four partials that die away, the high ones sooner."""
    since, _ = _since_beat(time, 0.5 / sound.tempo)
    wave = np.zeros_like(time)
    for ratio, amplitude in BELL_PARTIALS:
        frequency = 700 * sound.pitch * ratio
        if frequency < rate / 2:
            wave += amplitude * np.exp(-since * 4 * math.sqrt(ratio)) * _tone(frequency * since)
    return wave


def _drum(time: Wave, sound: Sound, rate: float, rng: np.random.Generator) -> Wave:
    """Beat four times a second: a low tone that falls, and a short rustle."""
    since, _ = _since_beat(time, 0.25 / sound.tempo)
    # The frequency falls from 180 to 60 Hz; its integral is the phase.
    phase = sound.pitch * (60 * since + 120 * 0.03 * (1 - np.exp(-since / 0.03)))
    rustle = 0.25 * np.exp(-since / 0.015) * rng.standard_normal(len(time))
    return np.exp(-since / 0.07) * _tone(phase) + rustle


def _bird(time: Wave, sound: Sound, rate: float, rng: np.random.Generator) -> Wave:
    """Chirp three times, rising from 2500 to 4500 Hz, then rest."""
    since, beat = _since_beat(time, 0.13 / sound.tempo)
    length = 0.09 / sound.tempo
    share = np.minimum(since / length, 1.0)
    phase = sound.pitch * length * (2500 * share + 1000 * share**2)
    return np.where(beat % 5 < 3, np.sin(math.pi * share) ** 2, 0.0) * _tone(phase)


def _siren(time: Wave, sound: Sound, rate: float, rng: np.random.Generator) -> Wave:
    """Wail up and down between 500 and 1100 Hz once a second, with odd overtones."""
    speed = sound.tempo
    phase = sound.pitch * (
        800 * time - 300 * np.cos(2 * math.pi * speed * time) / (math.tau * speed)
    )
    wave = _tone(phase)
    for overtone in (3, 5):
        if 1100 * sound.pitch * overtone < rate / 2:
            wave += _tone(overtone * phase) / overtone
    return wave


def _whistle(time: Wave, sound: Sound, rate: float, rng: np.random.Generator) -> Wave:
    """Blow long blasts at 2100 Hz that the pea shakes 24 times a second, with some breath."""
    since, _ = _since_beat(time, 0.8 / sound.tempo)
    shake = 2 * math.pi * 24 * sound.tempo
    phase = sound.pitch * (2100 * time - 120 * np.cos(shake * time) / shake)
    level = 0.7 + 0.3 * np.sin(shake * time)
    blast = np.clip(np.minimum(since, 0.65 / sound.tempo - since) / 0.03, 0.0, 1.0)
    return blast * (level * _tone(phase) + 0.08 * rng.standard_normal(len(time)))


def _engine(time: Wave, sound: Sound, rate: float, rng: np.random.Generator) -> Wave:
    """Buzz at 75 Hz with twelve overtones, throbbing nine times a second."""
    wave = np.zeros_like(time)
    for harmonic in range(1, 14):
        wave += _tone(75 * sound.pitch * harmonic * time + 0.3 * harmonic**2) / harmonic
    return (0.6 + 0.4 * np.sin(2 * math.pi * 9 * sound.tempo * time)) * wave


VOICES: dict[Kind, Voice] = {
    "bell": _bell,
    "drum": _drum,
    "bird": _bird,
    "siren": _siren,
    "whistle": _whistle,
    "engine": _engine,
}
"""(time in seconds, sound, sample rate, source of noise) to the wave of every thing."""
