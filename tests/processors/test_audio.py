"""Clips and spectrograms of sounds."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import video_llama.common.compat

import numpy as np
import pytest
import torch
from torchaudio.compliance.kaldi import fbank

from tests import media
from tests.reference import GOLDEN
from video_llama.processors.audio import clip_spans, log_mel
from video_llama.processors.media import NoSoundError
from video_llama.processors.settings import AudioSettings

CLIPS: dict[str, Any] = json.loads((GOLDEN / "processors.json").read_text())["clips"]
RAW = AudioSettings(mean=0.0, std=1.0)
"""Without normalisation."""


def noise(channels: int, samples: int, seed: int = 0) -> torch.Tensor:
    return torch.rand(channels, samples, generator=torch.Generator().manual_seed(seed)) - 0.5


@pytest.mark.parametrize("name", CLIPS)
def test_clips_lie_where_the_original_puts_them(name: str) -> None:
    spans = clip_spans(CLIPS[name]["num_samples"], AudioSettings())
    assert [list(span) for span in spans] == CLIPS[name]["spans"]


def test_clips_of_a_short_sound_are_the_whole_sound() -> None:
    assert clip_spans(16000, AudioSettings()) == [(0, 16000)] * 8
    assert clip_spans(32000, AudioSettings()) == [(0, 32000)] * 8


def test_clip_times_are_exact_fractions() -> None:
    settings = AudioSettings(clip_duration=0.1, sample_rate=11025, clips_per_video=3)
    # 1102.5 samples a clip: the third of three begins at 2/3 of 8897.5.
    assert clip_spans(10_000, settings) == [(0, 1102), (2965, 4068), (5931, 7034)]


def test_the_spectrogram_equals_the_originals() -> None:
    with np.load(GOLDEN / "spectrogram.npz") as golden:
        waveform, expected = (torch.from_numpy(golden[k]) for k in ("waveform", "log_mel"))
    values = log_mel([waveform], RAW)[0, 0, :, : expected.shape[1]]
    # Logarithms of small energies: rounding shows, up to 7e-4 of values from -13 to -2.
    torch.testing.assert_close(values, expected, rtol=0, atol=2e-3)


def test_clips_made_together_equal_clips_made_alone() -> None:
    clips = [noise(2, length, length) for length in (32000, 400, 401, 31999, 16000, 559, 560)]
    together = log_mel(clips, AudioSettings())
    alone = torch.cat([log_mel([clip], AudioSettings()) for clip in clips])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4)
    for clip, values in zip(clips, log_mel(clips, RAW), strict=True):
        rows = fbank(
            (clip - clip.mean())[:1],
            htk_compat=True,
            use_energy=False,
            window_type="hanning",
            num_mel_bins=128,
            dither=0.0,
        )
        torch.testing.assert_close(values[0, :, : len(rows)], rows.T, rtol=0, atol=1e-3)
        assert not values[0, :, len(rows) :].any()


def test_padding_is_zero_before_normalisation() -> None:
    settings = AudioSettings()
    values = log_mel([noise(1, 32000)], settings)
    assert values.shape == (1, 1, 128, 204)
    assert settings.clip_frames == 198
    padding = values[..., 198:]
    torch.testing.assert_close(padding, torch.full_like(padding, 4.268 / 9.138))
    assert round(padding[0, 0, 0, 0].item(), 4) == 0.4671


def test_the_waveform_is_not_changed_and_overlapping_clips_do_not_affect_each_other() -> None:
    waveform = noise(2, 40_000) + 0.3
    before = waveform.clone()
    clips = [waveform[:, :32000], waveform[:, 8000:]]
    both = log_mel(clips, AudioSettings())
    assert torch.equal(waveform, before)
    second = log_mel([waveform[:, 8000:].clone()], AudioSettings())[0]
    torch.testing.assert_close(both[1], second, rtol=0, atol=1e-5)


def test_only_the_first_channel_is_heard() -> None:
    first, other = noise(1, 32000, 1), noise(1, 32000, 2)
    settings = AudioSettings()
    mono, stereo = log_mel([first], settings), log_mel([torch.cat([first, other])], settings)
    torch.testing.assert_close(mono, stereo, rtol=0, atol=1e-3)


def test_the_mean_of_the_channels_is_heard_where_it_is_asked_for() -> None:
    first, other = noise(1, 32000, 1), noise(1, 32000, 2)
    settings = AudioSettings(channels="mean")
    mean, both = (first + other) / 2, torch.cat([first, other])
    torch.testing.assert_close(
        log_mel([both], settings), log_mel([mean], AudioSettings()), rtol=0, atol=1e-3
    )
    torch.testing.assert_close(
        log_mel([first], settings), log_mel([first], AudioSettings()), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize(("name", "layout"), [("a.wav", "stereo"), ("a.flac", "5.1")])
def test_a_silent_first_channel_beside_a_loud_one_is_told(
    tmp_path: Path, name: str, layout: str
) -> None:
    channels = 2 if layout == "stereo" else 6
    codec = "flac" if name == "a.flac" else "pcm_s16le"
    tones = media.tone(2, 48000, channels=channels)
    tones[0] = 0
    path = media.write_timed_sound(tmp_path / name, tones, codec=codec, layout=layout)
    first = AudioSettings().build()(path)
    assert f"only the first of its {channels} channels is heard, and it is silent" in first.notice
    assert "audio_processor.channels to mean" in first.notice
    mean = AudioSettings(channels="mean").build()(path)
    assert mean.notice == ""
    assert (mean.values - first.values).abs().max() > 0.5
    loud = media.write_timed_sound(tmp_path / name, tones[::-1].copy(), codec=codec, layout=layout)
    assert AudioSettings().build()(loud).notice == ""


def test_all_channels_silent_or_mono_silence_is_no_notice(tmp_path: Path) -> None:
    for channels in (1, 2):
        path = media.write_audio(tmp_path / "a.wav", np.zeros((channels, 32000), np.float32))
        assert AudioSettings().build()(path).notice == ""


def test_spans_of_a_late_sound_are_on_the_time_line_of_its_clip(tmp_path: Path) -> None:
    path = media.write_timed_sound(
        tmp_path / "a.mp4", media.tone(2, 48000), start=4.0, num_frames=150
    )
    sound = AudioSettings(clips_per_video=4).build()(path)
    assert sound.duration == pytest.approx(6, abs=0.05)
    assert sound.spans == [
        (pytest.approx(i, abs=0.05), pytest.approx(i + 2, abs=0.05)) for i in range(4)
    ]
    loudness = sound.values[:, 0, :, :198].amax(dim=1)
    # The clip from 3 to 5 s: silence up to 4 s, then the tone.
    assert loudness[3, :95].max() + 0.3 < loudness[3, 105:195].min()
    assert loudness[:3, :90].max() < loudness[3, 105:195].min()


def test_a_file_becomes_clips_that_describe_themselves(tmp_path: Path) -> None:
    path = media.write_audio(tmp_path / "a.wav", media.tone(6, 44100, channels=2), 44100)
    sound = AudioSettings(clips_per_video=4).build()(path)
    assert sound.values.shape == (4, 1, 128, 204)
    assert sound.spans == [(0.0, 2.0), (1.0, 3.0), (2.0, 4.0), (3.0, 5.0)]
    assert (sound.duration, sound.sample_rate, sound.num_channels) == (6.0, 44100, 2)
    assert sound.values.isfinite().all()


def test_the_pitch_is_where_it_belongs(tmp_path: Path) -> None:
    processor = AudioSettings(clips_per_video=1).build()
    bands = []
    for hertz in (300, 1000, 4000):
        path = media.write_audio(tmp_path / "a.wav", media.tone(2, hertz=hertz))
        bands.append(int(processor(path).values[0, 0, :, :198].mean(dim=1).argmax()))
    mel = [1127 * np.log1p(hertz / 700) for hertz in (20, 300, 1000, 4000, 8000)]
    expected = [128 * (m - mel[0]) / (mel[-1] - mel[0]) for m in mel[1:-1]]
    assert np.abs(np.subtract(bands, expected)).max() <= 2


def test_silence_is_finite(tmp_path: Path) -> None:
    path = media.write_video(tmp_path / "a.mp4", sound=np.zeros((1, 32000), np.float32))
    values = AudioSettings().build()(path).values
    assert values.isfinite().all()
    assert values[..., :198].max() < -1.2


def test_less_than_a_window_is_refused_and_a_window_is_enough(tmp_path: Path) -> None:
    processor = AudioSettings().build()
    with pytest.raises(NoSoundError, match=r"the sound lasts 24\.9 ms, at least 25 ms are needed"):
        processor(media.write_audio(tmp_path / "a.wav", media.tone(399 / 16000)))
    sound = processor(media.write_audio(tmp_path / "a.wav", media.tone(0.025)))
    assert sound.values.shape == (8, 1, 128, 204)
    assert sound.spans == [(0.0, 0.025)] * 8


def test_a_part_of_a_sound_is_heard_as_if_it_were_a_file(tmp_path: Path) -> None:
    sound = media.tone(4.0)
    whole = media.write_audio(tmp_path / "whole.wav", sound)
    part = media.write_audio(tmp_path / "part.wav", sound[:, 16000:40000])
    found = AudioSettings().build(1.0, 2.5)(whole)
    assert torch.allclose(found.values, AudioSettings().build()(part).values, atol=1e-4)
    assert all(1.0 <= begin < end <= 2.5 for begin, end in found.spans)
    with pytest.raises(NoSoundError, match="the part of the sound lasts 0 ms"):
        AudioSettings().build(5.0, 6.0)(whole)
