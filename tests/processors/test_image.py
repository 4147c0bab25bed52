"""Pictures of every kind come out upright, opaque and 8-bit; broken ones are told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests import media
from video_llama.processors import image as image_module
from video_llama.processors.image import load_image
from video_llama.processors.settings import ImageEvalSettings, ImageTrainSettings
from video_llama.types import MediaError

RED, BLUE, GREY = (220, 30, 30), (30, 30, 220), (235, 235, 235)


def near(a: object, b: tuple[int, int, int], tolerance: int = 6) -> bool:
    return bool(np.abs(np.subtract(np.asarray(a), b)).max() <= tolerance)


@pytest.mark.parametrize(
    ("name", "mode"),
    [
        *[("a.png", "RGB"), ("a.png", "RGBA"), ("a.jpg", "RGB"), ("a.jpg", "CMYK")],
        *[("a.bmp", "RGB"), ("a.webp", "RGB"), ("a.tiff", "RGB"), ("a.gif", "RGB")],
    ],
)
def test_common_formats_keep_their_colours(tmp_path: Path, name: str, mode: str) -> None:
    image = load_image(media.write_picture(tmp_path / name, mode=mode))
    assert (image.mode, image.size) == ("RGB", (40, 30))
    assert near(image.getpixel((3, 3)), RED)
    assert near(image.getpixel((36, 3)), BLUE)
    assert near(image.getpixel((20, 27)), GREY)


def test_transparent_parts_are_white_and_opaque_ones_unchanged(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2] = (10, 20, 30, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert image.getpixel((0, 0)) == (10, 20, 30)
    assert image.getpixel((0, 3)) == (255, 255, 255)


def test_a_transparent_palette_colour_is_white(tmp_path: Path) -> None:
    image = Image.fromarray(np.array([[0, 1]], np.uint8))
    image = image.convert("P")
    image.putpalette([0, 0, 0, 9, 9, 9])
    image.save(tmp_path / "a.png", transparency=0)
    loaded = load_image(tmp_path / "a.png")
    assert [loaded.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (9, 9, 9)]


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path: Path) -> None:
    levels = np.array([[0, 0x4000, 0x8000, 0xFFFF]], np.uint16)
    Image.fromarray(levels).save(tmp_path / "a.png")
    image = load_image(tmp_path / "a.png")
    assert [image.getpixel((x, 0)) for x in range(4)] == [
        (level, level, level) for level in (0, 64, 128, 255)
    ]


def test_a_picture_filmed_sideways_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it upright
    picture = Image.fromarray(media.frame_picture(1, 2, 40, 30))
    picture.save(tmp_path / "a.jpg", exif=exif, quality=95)
    image = load_image(tmp_path / "a.jpg")
    assert image.size == (30, 40)
    assert near(image.getpixel((26, 3)), RED)
    assert near(image.getpixel((26, 36)), BLUE)


def test_an_animation_gives_its_first_frame(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert load_image(tmp_path / "a.gif").getpixel((4, 4)) == (255, 0, 0)


def test_broken_files_are_media_errors_that_name_the_file(tmp_path: Path) -> None:
    broken = media.broken_files(tmp_path)
    cut = media.truncate(media.write_picture(tmp_path / "cut.jpg", 300, 300), 0.5)
    cut_png = media.truncate(media.write_picture(tmp_path / "cut.png", 300, 300), 0.5)
    noise = media.corrupt(media.write_picture(tmp_path / "noise.png", 300, 300), 0.1)
    for path in [*broken.values(), cut, cut_png, noise]:
        with pytest.raises(MediaError) as error:
            load_image(path)
        assert error.value.path == path
        assert error.value.reason


def test_a_picture_too_large_to_unpack_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = media.write_picture(tmp_path / "a.png")
    monkeypatch.setattr(image_module, "MAX_PICTURE_PIXELS", 1000)
    with pytest.raises(MediaError, match="40x30 pixels are too many, at most 1000"):
        load_image(path)


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)
    with pytest.raises(MediaError, match="pixels"):
        load_image(path)


def test_evaluation_resizes_the_whole_picture() -> None:
    picture = Image.fromarray(media.frame_picture(1, 2, 40, 30))
    settings = ImageEvalSettings(image_size=16)
    values = settings.build()(picture)
    assert values.shape == (3, 16, 16)
    assert values.dtype == torch.float32
    corner = (values[:, 1, 1] * torch.tensor(settings.std) + torch.tensor(settings.mean)) * 255
    assert near(corner.numpy(), RED)


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
