"""The settings of the processors: names, defaults and what is refused."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from video_llama.processors.settings import (
    PROCESSORS,
    AudioSettings,
    CaptionSettings,
    ImageTrainSettings,
    VideoEvalSettings,
    VideoTrainSettings,
)
from video_llama.types import ConfigError

NAMES = [
    "alpro_video_eval",
    "alpro_video_train",
    "blip2_image_eval",
    "blip2_image_train",
    "blip_caption",
    "imagebind_audio",
]


def test_every_name_of_the_original_builds_with_its_defaults() -> None:
    assert list(PROCESSORS) == NAMES
    for name in NAMES:
        settings: Any = PROCESSORS.get(name)()  # type: ignore[call-arg]
        assert settings.name == name
        assert callable(settings.build())


def test_reading_settings_imports_no_torch() -> None:
    code = "import sys, video_llama.processors.settings; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_lists_from_a_yaml_become_tuples() -> None:
    mean: Any = [0.1, 0.2, 0.3]
    assert VideoEvalSettings(mean=mean).mean == (0.1, 0.2, 0.3)


@pytest.mark.parametrize(
    ("settings", "values", "named"),
    [
        (VideoTrainSettings, {"n_frms": 0}, ["n_frms", "0"]),
        (VideoTrainSettings, {"image_size": 0}, ["image_size", "0"]),
        (VideoTrainSettings, {"min_scale": 0.9, "max_scale": 0.5}, ["0.9", "0.5", "min_scale"]),
        (VideoTrainSettings, {"max_scale": 1.5}, ["1.5", "max_scale"]),
        (ImageTrainSettings, {"min_scale": 0.0}, ["min_scale", "0.0"]),
        (ImageTrainSettings, {"std": (0.1, 0.0, 0.1)}, ["std", "0.0"]),
        (ImageTrainSettings, {"mean": (0.1, 0.2)}, ["mean", "0.2"]),
        (ImageTrainSettings, {"mean": (0.1, 0.2, float("nan"))}, ["mean", "nan"]),
        (VideoEvalSettings, {"sampling": "unifrom"}, ["unifrom", "did you mean 'uniform'"]),
        (VideoEvalSettings, {"start": 5.0, "end": 5.0}, ["end", "start", "5"]),
        (VideoEvalSettings, {"start": -1.0}, ["start", "-1"]),
        (VideoEvalSettings, {"end": float("inf")}, ["end", "inf"]),
        (VideoEvalSettings, {"sampling": "fps"}, ["fps", "None", "sampling"]),
        (VideoEvalSettings, {"fps": 2.0}, ["2.0", "auto", "sampling"]),
        (VideoEvalSettings, {"fps": 0.0, "sampling": "fps"}, ["fps", "0.0"]),
        (CaptionSettings, {"max_words": 0}, ["max_words", "0"]),
        (AudioSettings, {"clip_duration": 0.01}, ["clip_duration", "0.01"]),
        (AudioSettings, {"clip_duration": 3.0}, ["clip_duration", "3 s", "298", "204"]),
        (AudioSettings, {"std": 0.0}, ["std", "0.0"]),
        (AudioSettings, {"mean": float("nan")}, ["mean", "nan"]),
        (AudioSettings, {"channels": "frist"}, ["frist", "did you mean 'first'"]),
    ],
)
def test_impossible_values_are_refused_by_name_and_value(
    settings: type[Any], values: dict[str, Any], named: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        settings(**values)
    assert all(word in str(error.value) for word in named), str(error.value)


def test_auto_sampling_is_the_choice_of_the_caller_and_a_set_one_is_not() -> None:
    assert VideoTrainSettings().build().sampling == "uniform"
    assert VideoTrainSettings().build(auto_sampling="headtail").sampling == "headtail"
    kept = VideoTrainSettings(sampling="uniform").build(auto_sampling="headtail")
    assert kept.sampling == "uniform"
