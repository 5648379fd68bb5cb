"""The channels of a picture of more than 8 bits, whose values are read box by box."""

import math
import re
from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile
from PIL.TiffImagePlugin import TiffImageFile

from e3jax.images import formats
from e3jax.images.grounds import strips
from e3jax.images.pillow import open_picture, rawmode, set_rawmode

Box = tuple[int, int, int, int]
# The values of a box of one channel, float64 [h, w].
Channel = Callable[[Box], np.ndarray]
_GDAL_NODATA = 42113  # the tag of pixels without data
_HUGE = 1e37  # what is larger overflows when pixels are averaged in single precision
# Colours of 16 bits, of which Pillow keeps the high bytes. Not premultiplied ones ("RGBa").
_COLOURS = re.compile(r"(RGB|RGBA|RGBX|LA|[RGBA]);16[BLN]")


def is_high_depth(picture: Image.Image) -> bool:
    """Whether a picture that is not decoded yet has values of more than 8 bits."""
    if picture.mode in ("RGB", "RGBA"):
        return _COLOURS.fullmatch(rawmode(picture)) is not None
    return picture.mode.startswith(("I", "F"))


def decoded_channels(
    file: formats.OpenFile | None, picture: Image.Image
) -> tuple[list[Channel], Channel | None]:
    """Decodes a picture of more than 8 bits.

    Returns:
      Its one or three colours, and its opacity from 0 to 1, None if all is opaque.
    """
    if file is None or not isinstance(picture, ImageFile) or picture.mode.startswith(("I", "F")):
        channels = [_single(picture)]
    elif rawmode(picture).startswith("LA"):
        set_rawmode(picture, lambda raw: "RGBA")  # four bytes are taken for four channels
        high, low, high_alpha, low_alpha = picture.split()
        channels = [_of_16_bits(high, low), _of_16_bits(high_alpha, low_alpha)]
    else:
        lows = open_picture(file, 1)
        set_rawmode(lows, lambda raw: raw[:-1] + ("L" if raw[-1] == "B" else "B"))
        pairs = zip(picture.split(), lows.split(), strict=True)
        channels = [_of_16_bits(high, low) for high, low in pairs]
    if len(channels) in (2, 4):
        *colours, opacity = channels
        return colours, lambda box: opacity(box) / 65535
    hidden = np.ravel(picture.info.get("transparency", ()))
    if len(hidden) != len(channels):
        return channels, None
    # The colour that a PNG file declares transparent.
    pairs = list(zip(channels, hidden, strict=True))
    return channels, lambda box: np.any([c(box) != value for c, value in pairs], 0).astype(float)


def data_mask(picture: Image.Image, channels: Sequence[Channel]) -> Channel | None:
    """Where a picture has data, 1 or 0; None if it has everywhere.

    Pixels have no data if they are not finite, or huge, as the largest float often stands for no
    data, or of the value that GDAL's tag names.

    Raises:
      ValueError: it has none.
    """
    absent = _absent_value(picture)
    if picture.mode != "F" and math.isnan(absent):
        return None

    def data(box: Box) -> np.ndarray:
        planes = np.stack([channel(box) for channel in channels])
        return ((np.abs(planes) < _HUGE) & (planes != absent)).any(axis=0).astype(float)

    shares = [data(box).mean() for box in strips(picture.size)]
    if not any(shares):
        raise ValueError("all pixels are not finite or without data")
    return None if min(shares) == 1 else data


def _absent_value(picture: Image.Image) -> float:
    """The value of pixels without data in a TIFF file, as GDAL writes it; NaN without that tag."""
    if not isinstance(picture, TiffImageFile):
        return math.nan
    try:
        value = float(str(picture.tag_v2[_GDAL_NODATA]).strip(" \0"))
    except (KeyError, ValueError):
        return math.nan
    return float(np.float32(value)) if picture.mode == "F" else value


def both(a: Channel, b: Channel) -> Channel:
    """The product of two channels."""
    return lambda box: a(box) * b(box)


def _single(picture: Image.Image) -> Channel:
    tags = picture.tag_v2 if isinstance(picture, TiffImageFile) else {}
    unsigned = picture.mode == "I" and tags.get(258) == (32,) and tags.get(339, (1,)) == (1,)
    picture.load()

    def values(box: Box) -> np.ndarray:
        pixels = np.asarray(picture.crop(box))
        return (pixels.view(np.uint32) if unsigned else pixels).astype(np.float64)

    return values


def _of_16_bits(high: Image.Image, low: Image.Image) -> Channel:
    return lambda box: 256.0 * np.asarray(high.crop(box)) + np.asarray(low.crop(box))
