"""Frames, pictures and spectrograms of real files equal those of the original."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from tests.reference import SHARED, needs_shared
from video_llama.processors import video_reader as readers
from video_llama.processors.audio import clip_spans, log_mel
from video_llama.processors.settings import (
    AudioSettings,
    ImageEvalSettings,
    ImageTrainSettings,
    VideoEvalSettings,
)
from video_llama.processors.video_reader import PyAvReader
from video_llama.processors.waveform import open_sound

pytestmark = needs_shared

VIDEOS = ["IronMan.mp4", "dog_barking.mp4", "silence_girl.mp4", "skateboarding_dog.mp4"]
SOUNDS = ["bird_audio.wav", "car_audio.wav", "dog_audio.wav", "dog_barking.mp4"]
MEDIA = SHARED / "media"


@cache
def facts() -> dict[str, Any]:
    result: dict[str, Any] = json.loads((SHARED / "golden/preprocessing.json").read_text())
    return result


@cache
def golden(name: str) -> torch.Tensor:
    with np.load(SHARED / "golden/preprocessing.npz") as arrays:
        return torch.from_numpy(arrays[name])


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_equal_the_originals(name: str) -> None:
    if readers.decord_module() is None:
        pytest.skip("there is no decord for this machine")
    clip = VideoEvalSettings().build()(MEDIA / name)
    expected = facts()[name]
    assert torch.equal(clip.frames, golden(f"video/{name}/frames_u8_CTHW"))
    assert clip.indices == expected["indices"]
    assert clip.num_frames_total == expected["vlen"]
    assert clip.fps == pytest.approx(expected["fps"], rel=1e-12)
    assert ", ".join(map(str, clip.seconds)) in expected["msg"]
    assert clip.pixel_values.mean().item() == pytest.approx(expected["eval_mean"], abs=1e-5)
    assert clip.pixel_values.std().item() == pytest.approx(expected["eval_std"], abs=1e-5)


@pytest.mark.parametrize("name", VIDEOS)
def test_frames_read_by_pyav_equal_the_originals_too(name: str) -> None:
    reader = PyAvReader(MEDIA / name, height=224, width=224)
    expected = facts()[name]
    assert reader.num_frames == expected["vlen"]
    assert reader.fps == pytest.approx(expected["fps"])
    frames = torch.from_numpy(reader.read(expected["indices"])).permute(3, 0, 1, 2)
    assert torch.equal(frames, golden(f"video/{name}/frames_u8_CTHW"))


@pytest.mark.parametrize(("name", "tolerance"), [("dog.jpg", 0), ("Statue_of_Liberty.jpg", 0.2)])
def test_pictures_equal_the_originals(name: str, tolerance: float) -> None:
    whole = ImageEvalSettings().build()(MEDIA / name)
    crop = ImageTrainSettings().build()(MEDIA / name, generator=torch.Generator().manual_seed(0))
    for kind, values in (("eval", whole), ("train_seed0", crop)):
        expected = golden(f"image/{name}/{kind}")
        torch.testing.assert_close(values, expected, rtol=0, atol=tolerance)


@pytest.mark.parametrize("name", SOUNDS)
def test_waveforms_equal_the_originals(name: str) -> None:
    sound, expected = open_sound(MEDIA / name), facts()[f"audio/{name}"]
    assert (sound.rate, sound.num_channels) == (expected["sr"], expected["channels"])
    assert sound.num_samples == expected["samples"]
    [wave] = sound.read([(0, expected["samples16k"])], rate=16000)
    torch.testing.assert_close(wave, golden(f"audio/{name}/wave16k"), rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", SOUNDS)
def test_spectrograms_equal_the_originals(name: str) -> None:
    values, expected = (
        AudioSettings().build()(MEDIA / name).values,
        golden(f"audio/{name}/melspec8"),
    )
    difference = (values - expected[0]).abs()
    assert difference.max() < 0.02
    assert (difference > 1e-4).float().mean() < 0.01


@pytest.mark.parametrize("name", SOUNDS)
def test_all_that_differs_is_the_originals_change_of_clips_in_place(name: str) -> None:
    sound, settings = open_sound(MEDIA / name), AudioSettings()
    length = sound.resampled_length(16000)
    [wave] = sound.read([(0, length)], rate=16000)
    values = []
    for begin, end in clip_spans(length, settings):
        clip = wave[:, begin:end]
        clip -= clip.mean()  # the view changes what the clips after it see
        values.append(log_mel([clip], settings)[0])
    expected = golden(f"audio/{name}/melspec8")[0]
    torch.testing.assert_close(torch.stack(values), expected, rtol=0, atol=5e-3)
    cells = (torch.stack(values) - expected).abs() > 1e-4
    ours = (AudioSettings().build()(MEDIA / name).values - expected).abs() > 1e-4
    assert cells.float().mean() < 2e-3 < 3 * ours.float().mean()


@pytest.mark.parametrize("name", ["IronMan.mp4", "skateboarding_dog.mp4"])
def test_spectrograms_of_longer_sounds_have_the_originals_statistics(name: str) -> None:
    sound, expected = AudioSettings().build()(MEDIA / name), facts()[f"audio/{name}"]
    assert [[round(t * 16000) for t in span] for span in sound.spans] == expected["sample_ranges"]
    assert sound.values.mean().item() == pytest.approx(expected["mean"], abs=1e-5)
    assert sound.values.std().item() == pytest.approx(expected["std"], abs=1e-5)
