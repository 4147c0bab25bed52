"""Tell what a file is, and open pictures with Pillow.

FFmpeg makes a clip of nearly everything: of one tile of a HEIC photo, of a photo inside a PDF, of
an icon. So the first bytes of a file decide who may open it: pictures are Pillow's, whatever is no
media is refused by its name, and only the rest goes to FFmpeg.
"""

from __future__ import annotations

import importlib
import importlib.util
import io
import re
import struct
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from video_llama.common.io import check_file
from video_llama.processors.limits import limit, refuse_cost
from video_llama.types import MediaError

# Only what people have pictures in (the MPO of phones counts as JPEG): Pillow would hand EPS to
# an external program.
_FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

_MOVING = ("GIF", "PNG")
"""Formats whose animations FFmpeg reads with the right times; AVIF's and WebP's it does not."""

_BROKEN = (
    *(OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError),
    *(struct.error, zlib.error, MemoryError, RuntimeError, KeyError, AttributeError),
)
"""What Pillow raises on a damaged file, found by feeding it some."""

_LARGE_TEXT = 2**20
"""Bytes of a PNG's text or colour profile from which on Pillow refuses the picture."""

_HEAD_BYTES = 4096

_PICTURES = re.compile(
    rb"\xff\xd8\xff|\x89PNG\r\n\x1a\n|BM.{4}\0\0\0\0|II\*\0|MM\0\*|RIFF.{4}WEBP|P[1-6][\s#]|GIF8"
    rb"|\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51",
    re.DOTALL,
)
"""Beginnings of what Pillow opens first; an animated GIF or PNG is then left to FFmpeg."""

_AVIF = re.compile(rb".{4}ftyp(avif|avis)", re.DOTALL)

_SOUND_FILES = re.compile(
    rb"ID3|fLaC|RIFF.{4}WAVE|FORM.{4}AIF|.{4}ftypM4[AB] |\xff[\xe2-\xfe]", re.DOTALL
)

_HEIF = re.compile(rb".{4}ftyp(heic|heix|heim|heis|hevc|hevx|mif1|msf1)", re.DOTALL)

_RAW = rb"II\*\x00.{4}CR|IIU\x00|IIRO|IIRS|FUJIFILMCCD-RAW|FOVb|.{4}ftypcrx "
"""Beginnings of raw photos. Pillow would open the small preview of some."""

_FOREIGN = {
    rb".{0,1024}%PDF-": "a PDF document",
    rb"8BPS": "a Photoshop picture (PSD)",
    rb"\x00\x00[\x01\x02]\x00[\x01-\xff]\x00..[\x00-\xff]\x00": "an icon (ICO)",
    rb"%!PS|\xc5\xd0\xd3\xc6": "a PostScript drawing",
    rb"\xff\x0a|\x00\x00\x00\x0cJXL ": "a JPEG XL picture",
    _RAW: "a raw photo of a camera",
    rb"v/1\x01": "an OpenEXR picture",
    rb"gimp xcf": "a GIMP picture (XCF)",
    rb"DDS |qoif|\x0a[\x00-\x05]\x01|\x01\xda[\x00\x01][\x01\x02]": "a picture in a rare format",
    rb".{128}DICM": "a medical picture (DICOM)",
    rb"AT&TFORM": "a DjVu document",
    rb"PK\x03\x04.*(word/|xl/|ppt/|mimetype|\[Content_Types\])": "an office document",
    rb"PK[\x03\x05]|\x1f\x8b|BZh|7z\xbc\xaf|Rar!|\xfd7zXZ|\x28\xb5\x2f\xfd": "an archive",
    rb"\xd0\xcf\x11\xe0": "an old office document",
    rb"\x00\x01\x00\x00\x00.{7}[ -~]{4}|OTTO|true\x00|ttcf|wOF[F2]": "a font",
    rb"\x7fELF|MZ.{58}|\xca\xfe\xba\xbe|\xcf\xfa\xed\xfe": "a program",
    rb"MThd": "a MIDI file, which has notes and no sound",
    rb"SQLite format 3|\x93NUMPY|\x89HDF|PAR1": "a data file",
    rb"\s*(<\?xml.*)?<svg|\s*<\?xml.*<!DOCTYPE svg": "an SVG drawing",
    rb"\s*(<!doctype html|<html)": "a web page",
}
"""Beginnings of files that hold no picture, clip or sound that can be read, and their names."""

_FOREIGN_PATTERNS = [
    (re.compile(pattern, re.DOTALL | re.IGNORECASE if b"<" in pattern else re.DOTALL), name)
    for pattern, name in _FOREIGN.items()
]

_TEXT = re.compile(rb"[^\0-\x08\x0e-\x1a\x1c-\x1f\x7f]+")
"""Bytes without control characters."""


class PictureInfo(NamedTuple):
    """What the header of a picture says.

    Attributes:
        width: in pixels, before any turning.
        height: likewise.
        notice: what the user should know about it; empty if nothing.
    """

    width: int
    height: int
    notice: str


def refuse_foreign(path: str | Path) -> None:
    """Refuse a file that is neither clip nor sound, although FFmpeg may find something in it.

    Raises:
        MediaError: its first bytes say that it is something else.
    """
    head = _head(path)
    for pattern, name in _FOREIGN_PATTERNS:
        if pattern.match(head):
            raise MediaError(path, f"it is {name}, not a picture, clip or sound that can be read")
    if _HEIF.match(head) or _AVIF.match(head):
        raise MediaError(path, "it is a picture, a video was expected")
    if head.startswith((b"\xff\xfe", b"\xfe\xff")) or _is_text(head):
        raise MediaError(path, "it is text, not a media file")


def is_sound_file(path: str | Path) -> bool:
    """Tell whether the first bytes are of a container that holds one sound and perhaps covers."""
    return bool(_SOUND_FILES.match(_head(path)))


def is_jpeg(path: str | Path) -> bool:
    """Tell whether a file begins as a JPEG does, and a clip made of them."""
    return _head(path).startswith(b"\xff\xd8")


def _is_text(head: bytes) -> bool:
    # The last character may be cut by the end of what was read.
    if not _TEXT.fullmatch(head):
        return False
    try:
        head[: len(head) - 4].decode()
    except UnicodeDecodeError:
        return False
    return True


def read_picture_info(path: str | Path) -> PictureInfo | None:
    """Return what the header of a picture says; None for what is not a picture, or moves.

    Raises:
        MediaError: it cannot be opened, or is a picture that is damaged or larger than the limit.
    """
    check_file(path)
    if not _is_picture(_head(path)):
        return None
    with _opened(path) as image:
        frames = getattr(image, "n_frames", 1) if getattr(image, "is_animated", False) else 1
        if frames > 1 and image.format in _MOVING:
            return None
        # The pages of a TIFF and the two views of a stereo photo are not an animation.
        moves = frames > 1 and image.format in ("AVIF", "WEBP", "HEIF")
        notice = f"only the first of its {frames} frames is shown" if moves else ""
        return PictureInfo(image.width, image.height, notice)


def load_image(path: str | Path) -> Image.Image:
    """Load a picture file as RGB, upright, its first frame if it is animated.

    Args:
        path: AVIF, BMP, GIF, JPEG, JPEG 2000, PNG, PPM, TIFF or WebP; HEIC with `pillow-heif`.

    Raises:
        MediaError: it cannot be read as a picture, or is too large to unpack.
    """
    check_file(path)
    if not _is_picture(_head(path)):
        refuse_foreign(path)
    with _opened(path) as image:
        return to_rgb(image)


def to_rgb(image: Image.Image) -> Image.Image:
    """Return any picture as 8-bit RGB: turned upright, transparency on white, grey scaled."""
    # Tag 262 of a TIFF says what 0 means. Pillow heeds it for grey of 8 bits only.
    zero_is_white = getattr(image, "tag_v2", {}).get(262) == 0
    # Before anything else is done to it: other pictures do not keep the mark.
    image = ImageOps.exif_transpose(image)
    if image.mode == "F" or image.mode.startswith("I"):
        # Pillow's own conversion clips at 255, which turns nearly every such picture white.
        grey = _scaled(np.array(image))
        image = Image.fromarray(255 - grey if zero_is_white else grey)
    if image.mode == "LAB":  # Pillow's own conversion knows no LAB
        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        image = converted if converted is not None else image
    if image.has_transparency_data:
        # As a page shows it; without this, what is hidden under transparency would come out.
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image.convert("RGB")


def _scaled(grey: np.ndarray) -> np.ndarray:
    """Scale grey levels of any range to uint8.

    Files do not say where white is. Whole numbers: at the top of the smallest usual depth (8, 10,
    12, 14 or 16 bits) that holds the brightest pixel, since cameras and scanners put 12 bits into
    16. Fractions: at 1, or at 255, if all pixels lie between 0 and that. Otherwise the darkest
    pixel is black and the brightest white.

    Args:
        grey: (H, W) of any number type; what is not finite becomes black.
    """
    values = grey.astype(np.float64)
    finite = np.isfinite(values)
    low, high = (values[finite].min(), values[finite].max()) if finite.any() else (0.0, 1.0)
    whites = [1, 255] if grey.dtype.kind == "f" else [2**bits - 1 for bits in (8, 10, 12, 14, 16)]
    fitting = [(0.0, white) for white in whites if low >= 0 and high <= white]
    black, white = fitting[0] if fitting else (low, high)
    scaled = (np.where(finite, values, black) - black) / max(white - black, 1e-300) * 255
    return (scaled + 0.5).astype(np.uint8)


def _head(path: str | Path) -> bytes:
    with Path(path).open("rb") as file:
        return file.read(_HEAD_BYTES)


def _is_picture(head: bytes) -> bool:
    if re.match(_RAW, head, re.DOTALL):
        return False
    return any(pattern.match(head) for pattern in (_PICTURES, _AVIF, _HEIF))


@contextmanager
def _opened(path: str | Path) -> Iterator[Image.Image]:
    """Open a picture; everything that goes wrong inside is a `MediaError`."""
    try:
        with _open(path) as image:
            if image.width * image.height > limit("picture_pixels"):
                reason = f"{image.width}x{image.height} pixels are too many"
                refuse_cost(path, reason, "picture_pixels", "pixels")
            tags = getattr(image, "tag_v2", {}) if image.format == "TIFF" else {}
            if 50706 in tags or tags.get(254, 0) & 1:  # the version of DNG, or a small preview
                raise MediaError(path, "it is a raw photo of a camera; save it as JPEG")
            yield image
    except UnidentifiedImageError as error:
        raise MediaError(path, f"it is not a picture in one of {', '.join(_FORMATS)}") from error
    except Image.DecompressionBombError as error:
        refuse_cost(path, str(error).partition(",")[0], "picture_pixels", "pixels")
    except _BROKEN as error:
        raise MediaError(path, f"the picture is damaged ({error})") from error


def _open(path: str | Path) -> Image.Image:
    """Open a picture of a known format; its pixels are read later."""
    absolute = Path(path).absolute()
    head = _head(absolute)
    # Pillow has a limit of its own, at twice this number.
    if limit("picture_pixels") > 2 * (Image.MAX_IMAGE_PIXELS or limit("picture_pixels")):
        Image.MAX_IMAGE_PIXELS = limit("picture_pixels") // 2  # the user allows more than Pillow
    # A file of AVIF's may begin with a brand that HEIC has too; its list of brands tells.
    if _HEIF.match(head) and b"avif" not in head[: int.from_bytes(head[:4], "big")]:
        if importlib.util.find_spec("pillow_heif") is None:
            hint = "pip install 'video-llama[heif]' makes it readable, or save it as JPEG"
            raise MediaError(path, f"it is a HEIC photo; {hint}")
        image: Image.Image = importlib.import_module("pillow_heif").HeifImageFile(absolute)
        return image
    if head.startswith(b"\x89PNG"):
        return Image.open(_without_large_texts(absolute), formats=["PNG"])
    return Image.open(absolute, formats=_FORMATS)


def _without_large_texts(path: Path) -> Path | io.BytesIO:
    """Return a PNG file, or a copy without its large texts and colour profile.

    Pillow unpacks those and refuses a good picture for more than 1 MB of them. Small ones stay,
    because they may say which way up the picture is.
    """
    kept: list[tuple[int, int]] = [(0, 8)]
    size, place, allowed = path.stat().st_size, 8, 16 * _LARGE_TEXT
    with path.open("rb") as file:
        while place < size:  # chunks: length, name, content, checksum
            file.seek(place)
            header = file.read(8)
            length = int.from_bytes(header[:4], "big")
            end = min(place + 12 + length, size)
            if header[4:] in (b"tEXt", b"zTXt", b"iTXt", b"iCCP"):
                unpacked = _unpacked_size(header[4:], file.read(end - place - 8))
                allowed -= unpacked
                if unpacked > _LARGE_TEXT or allowed < 0:
                    place = end
                    continue
            kept.append((place, end))
            place = end
        if kept[-1][1] - 8 == sum(end - begin for begin, end in kept[1:]):
            return path  # nothing was left out
        copy = io.BytesIO()
        for begin, end in kept:
            file.seek(begin)
            copy.write(file.read(end - begin))
    copy.seek(0)
    return copy


def _unpacked_size(name: bytes, chunk: bytes) -> int:
    """Return the bytes of a PNG chunk's text when it is unpacked, or more than is allowed."""
    key_end = chunk.find(b"\0")
    if name == b"tEXt" or (name == b"iTXt" and chunk[key_end + 1 : key_end + 2] == b"\0"):
        return len(chunk)
    packed = chunk[key_end + 2 :]
    if name == b"iTXt":  # flag, method, language and translated key come before the text
        packed = chunk[key_end + 3 :].split(b"\0", 2)[-1]
    try:
        return len(zlib.decompressobj().decompress(packed, _LARGE_TEXT + 1))
    except zlib.error:
        return _LARGE_TEXT + 1
