"""Sound is decoded and resampled as torchaudio does it, in bounded memory."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import video_llama.common.compat

import numpy as np
import pytest
import torch
from torchaudio.functional import resample

from tests import media
from video_llama.processors import waveform
from video_llama.processors.media import NoSoundError
from video_llama.processors.waveform import Sound, open_sound
from video_llama.types import MediaError


def whole(sound: Sound, rate: int | None = None) -> torch.Tensor:
    rate = rate or sound.rate
    return sound.read([(0, sound.resampled_length(rate))], rate=rate)[0]


@pytest.mark.parametrize(
    ("codec", "error"),
    [
        *[("pcm_u8", 1 / 128), ("pcm_s16le", 1 / 32768), ("pcm_s24le", 1e-6), ("pcm_s32le", 1e-9)],
        *[("pcm_f32le", 0.0), ("pcm_f64le", 0.0)],
    ],
)
def test_every_sample_format_gives_the_same_floats(
    tmp_path: Path, codec: str, error: float
) -> None:
    tone = media.tone(0.5, channels=2)
    sound = open_sound(media.write_audio(tmp_path / "a.wav", tone, codec=codec))
    assert (sound.rate, sound.num_channels, sound.num_samples) == (16000, 2, 8000)
    assert (whole(sound) - torch.from_numpy(tone)).abs().max() <= error


def test_sixteen_bit_samples_are_exact_fractions_of_32768(tmp_path: Path) -> None:
    values = np.array([[-1.0, 1.0 - 1 / 32768, 0.5, 1 / 32768]], np.float32).repeat(400, axis=1)
    sound = open_sound(media.write_audio(tmp_path / "a.wav", values))
    assert torch.equal(whole(sound), torch.from_numpy(values))


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.mp3", "a.m4a", "a.ogg", "a.mp4"])
def test_every_common_container_is_heard(tmp_path: Path, name: str) -> None:
    tone = media.tone(1.0, 48000, channels=2)
    if name == "a.mp4":
        path = media.write_video(tmp_path / name, sound=tone, sound_rate=48000)
    else:
        path = media.write_audio(tmp_path / name, tone, 48000)
    sound = open_sound(path)
    assert (sound.rate, sound.num_channels) == (48000, 2)
    assert sound.num_samples == pytest.approx(48000, abs=2048)
    spectrum = torch.fft.rfft(whole(sound)[:, 12000:36000]).abs()
    assert (spectrum.argmax(dim=1) * 2).tolist() == [440, 880]


@pytest.mark.parametrize("rate", [8000, 11025, 16000, 22050, 44100, 48000])
def test_parts_equal_the_resampled_whole(tmp_path: Path, rate: int) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 2 * rate + 77)).astype(np.float32)
    sound = open_sound(media.write_audio(tmp_path / "a.wav", noise, rate, codec="pcm_f32le"))
    expected = resample(torch.from_numpy(noise), rate, 16000)
    length = sound.resampled_length(16000)
    assert expected.shape[1] == length
    spans = [(0, 5), (3, 900), (7001, 7002), (9000, 9400), (9400, 9500), (length - 3, length)]
    for (begin, end), part in zip(spans, sound.read(spans, rate=16000), strict=True):
        torch.testing.assert_close(part, expected[:, begin:end], rtol=0, atol=1e-6)
    torch.testing.assert_close(whole(sound, 16000), expected, rtol=0, atol=1e-6)


def test_a_long_file_is_read_in_parts_that_equal_the_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, (2, 50_000)).astype(np.float32)
    path = media.write_audio(tmp_path / "a.flac", noise, 44100)
    spans = [(0, 300), (9000, 12000), (11000, 12500), (18000, 18140)]
    short = open_sound(path)
    monkeypatch.setattr(waveform, "KEPT_SAMPLES", 10_000)
    long = open_sound(path)
    assert short.kept is not None
    assert long.kept is None
    pairs = zip(short.read(spans, rate=16000), long.read(spans, rate=16000), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_memory_does_not_grow_with_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(waveform, "KEPT_SAMPLES", 100_000)
    path = media.write_wav_header_only(tmp_path / "a.wav", rate=44100, num_samples=44100 * 60)
    tracemalloc.start()
    sound = open_sound(path)
    sound.read([(0, 16000), (800_000, 816_000)], rate=16000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert sound.num_samples == 44100 * 60
    assert peak < 2_000_000, f"{peak} bytes for a file of 5 MB"


def test_a_prime_sample_rate_needs_no_gigabytes(tmp_path: Path) -> None:
    tone = media.tone(1, 44101)
    sound = open_sound(media.write_audio(tmp_path / "a.wav", tone, 44101))
    part = whole(sound, 16000)
    assert part.shape[1] == pytest.approx(16000, abs=20)
    assert int(torch.fft.rfft(part[0, :16000]).abs().argmax()) == pytest.approx(440, abs=1)


@pytest.mark.parametrize("rate", [1, 999, 768_001, 2_000_000_000])
def test_absurd_sample_rates_are_refused(tmp_path: Path, rate: int) -> None:
    path = media.write_wav_header_only(tmp_path / "a.wav", rate=rate, num_samples=1000)
    with pytest.raises(MediaError, match=f"sample rate is {rate} Hz, 1000 to 768000 Hz expected"):
        open_sound(path)


def test_an_absurdly_long_sound_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(waveform, "MAX_SECONDS", 1)
    with pytest.raises(MediaError, match="longer than"):
        open_sound(media.write_audio(tmp_path / "a.wav", media.tone(2)))


def test_samples_that_are_no_numbers_are_refused(tmp_path: Path) -> None:
    tone = media.tone(1)
    tone[0, 500] = np.nan
    sound = open_sound(media.write_audio(tmp_path / "a.wav", tone, codec="pcm_f32le"))
    with pytest.raises(MediaError, match="no finite numbers"):
        whole(sound)


def test_channels_that_change_in_the_middle_are_told(tmp_path: Path) -> None:
    parts = [media.write_audio(tmp_path / f"{c}.mp3", media.tone(1, channels=c)) for c in (1, 2)]
    path = tmp_path / "a.mp3"
    path.write_bytes(b"".join(part.read_bytes() for part in parts))
    with pytest.raises(MediaError, match="changes its channels"):
        open_sound(path)


def test_no_sound_track_no_samples_and_damage_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(NoSoundError):
        open_sound(media.write_video(tmp_path / "a.mp4"))
    with pytest.raises(MediaError, match="no samples"):
        open_sound(media.write_wav_header_only(tmp_path / "a.wav"))
    damaged = tmp_path / "b.mp4"
    options = {"movflags": "faststart"}
    media.write_video(damaged, num_frames=2, sound=media.tone(9), options=options)
    media.corrupt(damaged, 0.3, 1.0)
    with pytest.raises(MediaError, match="damaged"):
        open_sound(damaged)


@pytest.mark.parametrize("name", ["a.flac", "a.mp4"])
def test_a_sound_cut_short_is_told_by_what_the_header_promises(tmp_path: Path, name: str) -> None:
    path, tone = tmp_path / name, media.tone(9)
    if name == "a.mp4":
        media.write_video(path, num_frames=2, sound=tone, options={"movflags": "faststart"})
    else:
        media.write_audio(path, tone)
    with pytest.raises(MediaError, match=r"of 9\.?\d* s; the file is cut short"):
        open_sound(media.truncate(path, 0.6))
