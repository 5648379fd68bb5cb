"""Opens a picture with Pillow, corrects what it gets wrong, and turns it upright."""

import re
from collections.abc import Callable
from typing import Any

from PIL import Image, ImageCms, TiffImagePlugin
from PIL.ImageFile import ImageFile

from e3jax.images import formats
from e3jax.images.grounds import opaque

# Makes an upright picture small, of mode RGB, L or F.
Shrink = Callable[[Image.Image], Image.Image]
# Bytes per pixel: two copies of four bytes; decoders that hold copies of their own.
_COPIES, _HUNGRY = 8, {"WEBP": 24, "AVIF": 24, "HEIF": 24, "JXL": 24, "JPEG2000": 24}
_ORIENTATION = 0x0112  # the tag of EXIF data
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def open_picture(file: formats.OpenFile, side: int) -> ImageFile:
    """Opens a picture, whose pixels are not decoded yet.

    Args:
      file: its content, from any position.
      side: in pixels; a JPEG file will be decoded at a reduced size of at least twice that.
    """
    picture = Image.open(file, formats=formats.readable_formats())
    picture.draft("RGB", (2 * side, 2 * side))
    if isinstance(picture, TiffImagePlugin.TiffImageFile) and picture.tile:
        _correct_tiff(picture)
    return picture


def _correct_tiff(picture: TiffImagePlugin.TiffImageFile) -> None:
    """Corrects how Pillow unpacks TIFF files of more than 8 bits, before they are decoded."""
    raw = rawmode(picture)
    if picture.tile[0][0] == "libtiff":  # which has swapped the bytes already
        set_rawmode(picture, lambda raw: re.sub(r"(\d)B", r"\1N", raw))
    elif len(raw) == 1 and 16 in picture.tag_v2.get(258, ()):  # one of several planes
        order = "B" if picture.tag_v2.prefix == b"MM" else "L"
        set_rawmode(picture, lambda raw: f"{raw};16{order}")


def rawmode(picture: Image.Image) -> str:
    """How pixels are stored in a file, e.g. "RGB;16B"; "" in memory or where it is unknown."""
    if not isinstance(picture, ImageFile) or not picture.tile:
        return ""
    raw = _first(picture.tile[0][3])  # of a plain tuple in some plug-ins
    return raw if isinstance(raw, str) else ""


def _first(args: Any) -> Any:
    """The raw mode among a tile's arguments, which may be all of them."""
    return args[0] if isinstance(args, tuple) and args else args


def set_rawmode(picture: ImageFile, change: Callable[[str], str]) -> None:
    """Changes how a picture's pixels are unpacked when they are decoded."""
    tiles = []
    for tile in picture.tile:
        raw = change(_first(tile.args))
        args = (raw, *tile.args[1:]) if isinstance(tile.args, tuple) else raw
        tiles.append(tile._replace(args=args))
    picture.tile = tiles


def bytes_of(picture: Image.Image) -> int:
    """About the number of bytes that decoding and converting a picture takes."""
    width, height = picture.size
    per_pixel = _HUNGRY.get(picture.format or "", _COPIES) + 12 * (";16" in rawmode(picture))
    needed = width * height * per_pixel
    if isinstance(picture, ImageFile) and picture.format == "JPEG":
        if picture.info.get("progressive"):
            # All coefficients, at any reduced size.
            needed += width * height * picture.decoderconfig[0] ** 2 * 6
    return needed


def orientation(picture: Image.Image, exif: bytes | None) -> Image.Transpose | None:
    """What turns a decoded picture upright; None if nothing has to, or its EXIF data is damaged.

    Args:
      picture: it must have been decoded.
      exif: EXIF data, if not the picture's.
    """
    if picture.format == "TIFF":  # Pillow turns these itself
        return None
    if exif is None and not picture.info:  # no metadata, which Pillow takes longer to find out
        return None
    try:
        if exif is None:
            tags = picture.getexif()
        else:
            tags = Image.Exif()
            tags.load(exif)
        return _TURNS.get(tags[_ORIENTATION])
    except Exception:  # damaged in any way, or there is none
        return None


def to_rgb(picture: Image.Image, exif: bytes | None = None) -> Image.Image:
    """Decodes a picture of any mode of 8 bits: RGB, upright; transparent ones get a ground."""
    picture.load()
    if (turn := orientation(picture, exif)) is not None:
        picture = picture.transpose(turn)
    if picture.has_transparency_data:
        return opaque(picture)
    if picture.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        picture = ImageCms.profileToProfile(picture, lab, srgb, outputMode="RGB") or picture
    return picture if picture.mode == "RGB" else picture.convert("RGB")
