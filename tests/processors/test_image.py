"""Crops, normalisation, and pictures as the model takes them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import media
from tests.reference import GOLDEN
from video_llama.processors.image import (
    CropBox,
    crop_and_resize,
    normalise,
    random_crop_box,
)
from video_llama.processors.settings import (
    ImageEvalSettings,
    ImageTrainSettings,
    VideoEvalSettings,
    VideoTrainSettings,
)

BOXES: dict[str, list[int]] = json.loads((GOLDEN / "processors.json").read_text())["crops_of_224"]


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def noise(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=random(9))


@pytest.mark.parametrize("seed", BOXES)
def test_a_seed_gives_the_crop_that_it_gave_in_the_original(seed: str) -> None:
    box = random_crop_box(224, 224, scale=(0.5, 1.0), generator=random(int(seed)))
    assert list(box) == [box.top, box.left, box.height, box.width] == BOXES[seed]


@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 500), (500, 1), (3, 1000), (480, 854)])
def test_crops_lie_inside_pictures_of_any_shape(height: int, width: int) -> None:
    for seed in range(20):
        box = random_crop_box(height, width, scale=(0.5, 1.0), generator=random(seed))
        assert 0 <= box.top < box.bottom <= height
        assert 0 <= box.left < box.right <= width


def test_bicubic_overshoot_is_clamped_and_does_not_wrap_round() -> None:
    frames = torch.zeros(3, 1, 8, 8, dtype=torch.uint8)
    frames[..., 4:] = 255
    resized = crop_and_resize(frames, CropBox(0, 0, 8, 8), 32)
    rows = resized[0, 0].int()
    assert rows.min() == 0
    assert rows.max() == 255
    assert (rows.diff(dim=1) >= 0).all(), "brightness falls where it must only rise"


def test_all_frames_of_a_clip_get_the_same_crop() -> None:
    settings = VideoTrainSettings(image_size=16)
    still = noise(3, 1, 40, 40).expand(-1, 4, -1, -1)
    values = settings.build().transform(still, generator=random())
    assert all(torch.equal(values[:, 0], values[:, t]) for t in range(1, 4))


def test_the_crop_repeats_with_the_seed_and_ignores_global_random_state() -> None:
    processor, frames = VideoTrainSettings(image_size=16).build(), noise(3, 2, 40, 40)
    torch.manual_seed(1)
    first = processor.transform(frames, generator=random(3))
    torch.manual_seed(2)
    state = torch.get_rng_state()
    assert torch.equal(processor.transform(frames, generator=random(3)), first)
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(processor.transform(frames, generator=random(4)), first)


def test_training_without_a_generator_is_refused() -> None:
    with pytest.raises(ValueError, match="alpro_video_train is random and got no generator"):
        VideoTrainSettings().build().transform(noise(3, 1, 8, 8))


def test_evaluation_takes_the_whole_picture() -> None:
    frames = noise(3, 2, 8, 8)
    settings = VideoEvalSettings(image_size=8)
    expected = normalise(frames, mean=settings.mean, std=settings.std)
    assert torch.equal(settings.build().transform(frames), expected)


def test_normalisation_is_per_colour_and_leaves_its_input_alone() -> None:
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1)
    values = normalise(pixels, mean=(0.5, 0.2, 0.0), std=(0.5, 1.0, 2.0))
    torch.testing.assert_close(values.flatten(), torch.tensor([-1.0, 0.0, 0.5]))
    assert pixels.flatten().tolist() == [0, 51, 255]


def test_evaluation_resizes_the_whole_picture() -> None:
    picture = Image.fromarray(media.frame_picture(1, 2, 40, 30))
    settings = ImageEvalSettings(image_size=16)
    values = settings.build()(picture)
    assert values.shape == (3, 16, 16)
    assert values.dtype == torch.float32
    corner = (values[:, 1, 1] * torch.tensor(settings.std) + torch.tensor(settings.mean)) * 255
    assert np.abs(corner.numpy() - (220, 30, 30)).max() <= 6


def test_a_file_and_the_same_picture_in_memory_agree(tmp_path: Path) -> None:
    path = media.write_picture(tmp_path / "a.png")
    processor = ImageEvalSettings(image_size=16).build()
    assert torch.equal(processor(path), processor(Image.open(path)))


def test_training_crops_by_the_generator_only(tmp_path: Path) -> None:
    path = media.write_picture(tmp_path / "a.png")
    processor = ImageTrainSettings(image_size=16).build()
    crops = [processor(path, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(crops[0], crops[1])
    assert not torch.equal(crops[0], crops[2])
    with pytest.raises(ValueError, match="blip2_image_train is random and got no generator"):
        processor(path)
