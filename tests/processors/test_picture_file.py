"""Pictures of every kind come out upright, opaque and 8-bit; everything else is named."""

from __future__ import annotations

import importlib.util
import io
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, PngImagePlugin

from tests import media
from tests.reference import SHARED
from video_llama.processors.media import probe
from video_llama.processors.picture_file import load_image
from video_llama.processors.settings import AudioSettings, VideoEvalSettings
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
    monkeypatch.setenv("VIDEO_LLAMA_MAX_PICTURE_PIXELS", "1000")
    with pytest.raises(
        MediaError,
        match=r"40x30 pixels are too many, at most 1000 .*VIDEO_LLAMA_MAX_PICTURE_PIXELS",
    ):
        load_image(path)


def test_a_decompression_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", (20_000, 20_000)).save(path)
    with pytest.raises(MediaError, match="pixels"):
        load_image(path)


def row(path: Path) -> list[int]:
    """The red of every pixel of the first row."""
    image = load_image(path)
    return [image.getpixel((x, 0))[0] for x in range(image.width)]  # type: ignore[index]


@pytest.mark.parametrize(
    ("levels", "expected"),
    [
        (np.float32([0, 0.25, 0.5, 1]), [0, 64, 128, 255]),
        (np.float32([0, 64, 128, 255]), [0, 64, 128, 255]),
        (np.float32([-10, 0, 10, 30]), [0, 64, 128, 255]),
        (np.float32([100, 300, 500, 900]), [0, 64, 128, 255]),
        (np.float32([0, np.nan, 0.5, 1]), [0, 0, 128, 255]),
        (np.int32([0, 64, 128, 255]), [0, 64, 128, 255]),
        (np.int32([0, 16384, 32768, 65535]), [0, 64, 128, 255]),
        (np.int32([0, 1024, 2048, 4095]), [0, 64, 128, 255]),
        (np.int32([-(2**30), 0, 0, 2**30]), [0, 128, 128, 255]),
        (np.uint16([0, 16384, 32768, 65535]), [0, 64, 128, 255]),
        (np.uint16([0, 1024, 2048, 4095]), [0, 64, 128, 255]),
        (np.uint16([0, 256, 512, 1023]), [0, 64, 128, 255]),
        (np.uint16([7, 7, 7, 7]), [7, 7, 7, 7]),
    ],
)
def test_grey_levels_of_every_range_are_seen(
    tmp_path: Path, levels: np.ndarray, expected: list[int]
) -> None:
    Image.fromarray(levels[None]).save(tmp_path / "a.tiff")
    assert np.abs(np.subtract(row(tmp_path / "a.tiff"), expected)).max() <= 1


def grey_tiff(path: Path, pixels: np.ndarray, photometric: int) -> Path:
    """A TIFF written by hand, since Pillow writes neither big-endian nor inverted grey."""
    order = ">" if pixels.dtype.byteorder == ">" else "<"
    (height, width), form = pixels.shape, {"u": 1, "i": 2, "f": 3}[pixels.dtype.kind]
    tags = {256: width, 257: height, 258: 8 * pixels.itemsize, 259: 1, 262: photometric}
    tags |= {273: 14 + 12 * 10, 277: 1, 278: height, 279: pixels.nbytes, 339: form}
    data = (b"MM\0*" if order == ">" else b"II*\0") + struct.pack(f"{order}IH", 8, len(tags))
    data += b"".join(struct.pack(f"{order}HHII", tag, 4, 1, value) for tag, value in tags.items())
    path.write_bytes(data + bytes(4) + pixels.tobytes())
    return path


@pytest.mark.parametrize("kind", ["<u2", ">u2", "<i4", ">i4", "<f4"])
def test_grey_tiffs_of_every_number_and_order_are_scaled(tmp_path: Path, kind: str) -> None:
    pixels = np.array([[0, 16384, 65535]], kind)
    assert row(grey_tiff(tmp_path / "a.tiff", pixels, 1)) == [0, 64, 255]


@pytest.mark.parametrize("kind", ["u1", "<u2", "<f4"])
def test_grey_tiffs_in_which_zero_is_white_are_inverted(tmp_path: Path, kind: str) -> None:
    pixels = np.array([[0, 64, 255]], kind)
    assert row(grey_tiff(tmp_path / "a.tiff", pixels, 0)) == [255, 191, 0]


def test_lab_and_palette_and_alpha_keep_their_colours(tmp_path: Path) -> None:
    picture = Image.fromarray(media.frame_picture(1, 2, 40, 30))
    profiles: list[Any] = [ImageCms.createProfile(name) for name in ("sRGB", "LAB")]
    lab: Any = ImageCms.profileToProfile(picture, *profiles, outputMode="LAB")
    lab.save(tmp_path / "lab.tiff")
    picture.convert("P", palette=Image.Palette.ADAPTIVE).save(tmp_path / "p.tiff")
    picture.convert("LA").save(tmp_path / "la.png")
    for name in ("lab.tiff", "p.tiff"):
        image = load_image(tmp_path / name)
        assert near(image.getpixel((3, 3)), RED), name
        assert near(image.getpixel((36, 3)), BLUE), name
    assert near(load_image(tmp_path / "la.png").getpixel((20, 27)), GREY)


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("kind", ["iTXt packed", "iTXt", "zTXt", "tEXt", "iCCP"])
def test_large_texts_and_profiles_of_a_png_do_not_matter(
    tmp_path: Path, kind: str, where: str
) -> None:
    picture, path = Image.fromarray(media.frame_picture(1, 2, 40, 30)), tmp_path / "a.png"
    info = PngImagePlugin.PngInfo()
    text = "x" * 3_000_000
    if kind.startswith("iTXt"):
        info.add_itxt("XML:com.adobe.xmp", text, zip=kind == "iTXt packed")
    elif kind != "iCCP":
        info.add_text("Comment", text, zip=kind == "zTXt")
    profile = bytes(3_000_000) if kind == "iCCP" else None
    exif = Image.Exif()
    exif[0x0112] = 6
    picture.save(path, pnginfo=info, icc_profile=profile, exif=exif)
    if where == "after":  # behind the pixels, where Pillow reads texts too
        data = path.read_bytes()
        place = data.index(kind[:4].encode()) - 4
        chunk = data[place : place + 12 + int.from_bytes(data[place : place + 4], "big")]
        path.write_bytes(data.replace(chunk, b"")[:-12] + chunk + data[-12:])
    assert (probe(path).kind, probe(path).width) == ("image", 40)
    image = load_image(path)
    assert image.size == (30, 40)  # what says that it is to be turned is kept
    assert near(image.getpixel((26, 3)), RED)


def test_small_texts_of_a_png_are_kept(tmp_path: Path) -> None:
    info = PngImagePlugin.PngInfo()
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    info.add_itxt("XML:com.adobe.xmp", xmp, zip=True)
    info.add_itxt("other", "x" * 3_000_000, zip=True)
    Image.fromarray(media.frame_picture(1, 2, 40, 30)).save(tmp_path / "a.png", pnginfo=info)
    assert load_image(tmp_path / "a.png").size == (30, 40)


def foreign_files() -> dict[str, tuple[bytes, str]]:
    """Contents and names of files that are no media, some with a JPEG inside."""
    jpeg, document, icon, archive = (io.BytesIO() for _ in range(4))
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), np.uint8))
    picture.save(jpeg, "JPEG")
    picture.save(document, "PDF")
    picture.save(icon, "ICO")
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("[Content_Types].xml", "<x/>")
        file.writestr("word/media/image1.jpeg", jpeg.getvalue())
    psd = b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 20, 20, 8, 3) + bytes(12) + b"\0\0" + bytes(1200)
    svg = b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"><path d="M0 0"/></svg>'
    font = b"\0\1\0\0\0\x0f\0\x80\0\3\0\x70DSIG" + bytes(500)
    return {
        "a.pdf": (document.getvalue(), "a PDF document"),
        "a.ico": (icon.getvalue(), r"an icon \(ICO\)"),
        "a.docx": (archive.getvalue(), "an office document"),
        "a.zip": (b"PK\3\4" + bytes(30) + jpeg.getvalue(), "an archive"),
        "a.psd": (psd, r"a Photoshop picture \(PSD\)"),
        "a.svg": (svg, "an SVG drawing"),
        "a.ttf": (font, "a font"),
        "a.woff2": (b"wOF2" + bytes(500), "a font"),
        "a.html": (b"<!DOCTYPE html><html><img></html>", "a web page"),
        "a.txt": (b"some notes\n" * 100, "text"),
        "a.csv": ("größe;länge\n1;2\n".encode() * 400, "text"),
        "a16.txt": (("some notes\n" * 100).encode("utf-16"), "text"),
        "a.jxl": (b"\xff\x0a" + bytes(100), "a JPEG XL picture"),
        "a.cr3": (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom" + jpeg.getvalue(), "a raw photo"),
        "a.cr2": (b"II*\0\x10\0\0\0CR\2\0" + bytes(100) + jpeg.getvalue(), "a raw photo"),
        "a.mid": (b"MThd\0\0\0\6" + bytes(100), "a MIDI file"),
        "a.exe": (b"\x7fELF" + bytes(100) + jpeg.getvalue(), "a program"),
        "a.gz": (b"\x1f\x8b\x08\0" + jpeg.getvalue(), "an archive"),
        "a.bin": (bytes(range(200, 256)) + jpeg.getvalue(), "not a media file"),
    }


@pytest.mark.parametrize("name", foreign_files())
def test_what_is_no_media_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    data, what = foreign_files()[name]
    (tmp_path / name).write_bytes(data)
    uses = [probe, load_image, VideoEvalSettings(image_size=16).build(), AudioSettings().build()]
    for use in uses:
        with pytest.raises(MediaError) as error:
            use(tmp_path / name)  # type: ignore[operator]
        assert error.value.path == tmp_path / name
    with pytest.raises(MediaError, match=f"it is {what}"):
        probe(tmp_path / name)


@pytest.mark.parametrize("name", ["a.tga", "a.pcx", "a.sgi"])
def test_pictures_that_only_ffmpeg_reads_are_no_clips(tmp_path: Path, name: str) -> None:
    media.write_picture(tmp_path / name)
    with pytest.raises(MediaError, match="it is a picture in a"):
        probe(tmp_path / name)


def test_a_preview_in_a_raw_photo_is_not_the_photo(tmp_path: Path) -> None:
    picture = Image.fromarray(media.frame_picture(1, 2, 40, 30))
    for tag, value in ((50706, b"\1\4\0\0"), (254, 1)):
        picture.save(tmp_path / "a.tiff", tiffinfo={tag: value})
        with pytest.raises(MediaError, match="a raw photo of a camera"):
            probe(tmp_path / "a.tiff")


def test_a_heic_photo_is_read_whole_or_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    photo = SHARED / "cases" / "tiled_photo.heic"
    if not photo.exists():
        pytest.skip(f"{photo} is not there")
    with pytest.raises(MediaError, match="it is a picture, a video was expected"):
        VideoEvalSettings(image_size=16).build()(photo)
    if importlib.util.find_spec("pillow_heif") is not None:
        assert (probe(photo).kind, probe(photo).width, probe(photo).height) == ("image", 3024, 4032)
        assert load_image(photo).size == (3024, 4032)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for use in (probe, load_image):
        with pytest.raises(MediaError, match=r"a HEIC photo; pip install 'video-llama\[heif\]'"):
            use(photo)


def test_the_colours_of_a_heic_photo_are_right(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif", reason="the extra `heif` is not installed")
    picture = Image.fromarray(media.frame_picture(1, 2, 80, 60))
    exif = Image.Exif()
    exif[0x0112] = 6
    heif.from_pillow(picture).save(tmp_path / "a.heic", quality=90)
    assert near(load_image(tmp_path / "a.heic").getpixel((6, 6)), RED, 12)
    heif.from_pillow(picture).save(tmp_path / "b.heic", quality=90, exif=exif.tobytes())
    turned = load_image(tmp_path / "b.heic")
    assert turned.size == (60, 80)
    assert near(turned.getpixel((52, 6)), RED, 12)


@pytest.mark.parametrize("name", ["a.webp", "a.avif", "a.png", "a.gif"])
def test_animations_move_or_say_that_they_do_not(tmp_path: Path, name: str) -> None:
    frames = [Image.new("RGB", (64, 48), colour) for colour in ("red", "lime", "blue")]
    pauses = [100, 500, 300]
    frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], duration=pauses)
    info = probe(tmp_path / name)
    if name in ("a.webp", "a.avif"):
        assert (info.kind, info.notice) == ("image", "only the first of its 3 frames is shown")
        assert near(load_image(tmp_path / name).getpixel((9, 9)), (255, 0, 0))
        return
    assert (info.kind, info.notice) == ("video", "")
    clip = VideoEvalSettings(image_size=16).build()(tmp_path / name)
    colours = clip.frames[:, :, 8, 8].T.tolist()
    assert all(
        near(c, e, 3) for c, e in zip(colours, [(255, 0, 0), (0, 255, 0), (0, 0, 255)], strict=True)
    )
    still = tmp_path / f"still-{name}"
    frames[0].save(still)
    assert (probe(still).kind, probe(still).notice) == ("image", "")


def test_pages_are_not_an_animation(tmp_path: Path) -> None:
    pages = [Image.new("RGB", (64, 48), colour) for colour in ("red", "lime")]
    pages[0].save(tmp_path / "a.tiff", save_all=True, append_images=pages[1:])
    assert (probe(tmp_path / "a.tiff").kind, probe(tmp_path / "a.tiff").notice) == ("image", "")


def test_a_damaged_picture_is_told_and_not_taken_for_a_clip(tmp_path: Path) -> None:
    for name in ("a.png", "a.jpg", "a.webp", "a.bmp", "a.tiff"):
        path = media.truncate(media.write_picture(tmp_path / name, 300, 300), 0.2)
        with pytest.raises(MediaError, match=r"the picture is damaged|not a picture in one of"):
            load_image(path)
        with pytest.raises(MediaError, match=r"picture"):
            VideoEvalSettings(image_size=16).build()(path)
