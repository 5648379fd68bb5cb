"""Opens an image with Pillow, corrects what it gets wrong, and turns it upright."""

import re
from collections.abc import Callable
from typing import BinaryIO

from e3jax.images import formats
from e3jax.images.squares import opaque

# Makes an upright image of Pillow's small, of mode RGB, L or F.
Shrink = Callable
# Bytes per pixel: two copies of four bytes; decoders that hold copies of their own.
COPIES, HUNGRY = 8, {"WEBP": 24, "AVIF": 24, "HEIF": 24, "JXL": 24, "JPEG2000": 24}
_TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}


def open_picture(file: BinaryIO, side: int):
    """Opens an image, whose pixels are not decoded yet."""
    from PIL import Image

    picture = Image.open(file, formats=formats.readable_formats())
    picture.draft("RGB", (2 * side, 2 * side))
    if picture.format == "TIFF" and picture.tile:
        _correct_tiff(picture)
    return picture


def _correct_tiff(picture) -> None:
    """Corrects how Pillow unpacks TIFF files of more than 8 bits, before they are decoded."""
    raw = rawmode(picture)
    if picture.tile[0][0] == "libtiff":  # which has swapped the bytes already
        set_rawmode(picture, lambda raw: re.sub(r"(\d)B", r"\1N", raw))
    elif len(raw) == 1 and 16 in picture.tag_v2.get(258, ()):  # one of several planes
        order = "B" if picture.tag_v2.prefix == b"MM" else "L"
        set_rawmode(picture, lambda raw: f"{raw};16{order}")


def rawmode(picture) -> str:
    """How pixels are stored in a file, e.g. "RGB;16B"; "" where the decoder alone knows."""
    if not getattr(picture, "tile", ()):  # none in memory
        return ""
    args = picture.tile[0][3]
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else ""


def set_rawmode(picture, change: Callable[[str], str]) -> None:
    tiles = []
    for tile in picture.tile:
        args = tile[3]
        new = change(args) if isinstance(args, str) else (change(args[0]), *args[1:])
        tiles.append(tile._replace(args=new))
    picture.tile = tiles


def bytes_of(picture) -> int:
    """About as many bytes as decoding and converting a picture takes."""
    width, height = picture.size
    per_pixel = HUNGRY.get(picture.format, COPIES)
    if ";16" in rawmode(picture):
        per_pixel += 12
    needed = width * height * per_pixel
    if picture.format == "JPEG" and picture.info.get("progressive"):
        (_, _, right, bottom), scale = picture.tile[0][1], picture.decoderconfig[0]
        needed += right * bottom * scale**2 * 6  # all coefficients, whatever the size
    return needed


def turned(picture, exif: bytes | None = None):
    """Decodes an image and turns it upright, as it is if its orientation cannot be read."""
    picture.load()
    if (turn := upright(picture, exif)) is None:
        return picture
    return picture.transpose(turn)


def upright(picture, exif: bytes | None):
    from PIL import Image

    if picture.format == "TIFF":  # Pillow turns these itself
        return None
    if exif is None and not picture.info:  # no metadata, which Pillow takes longer to find out
        return None
    try:
        if exif is None:
            found = picture.getexif()
        else:
            found = Image.Exif()
            found.load(exif)
        return getattr(Image.Transpose, _TURNS[found[0x0112]])
    except Exception:  # damaged in any way, or there is none
        return None


def to_rgb(picture):
    """Converts an image of any mode of 8 bits to RGB; transparent ones get a ground."""
    if picture.has_transparency_data:
        return opaque(picture)
    if picture.mode == "LAB":
        from PIL import ImageCms

        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        return ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")
