"""What a small square of a picture's pixels no longer shows: its file's facts, and its detail."""

import io
import math
import os
from typing import NamedTuple

import numpy as np
from PIL import Image

from e3jax.images import formats
from e3jax.images.high_depth import HighDepthImage, ValueRange, common_range
from e3jax.images.pillow import orientation
from e3jax.images.squares import to_square
from e3jax.images.statistics import SECTORS, statistics

_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "HEIF")
_QUARTER_TURNS = (
    Image.Transpose.ROTATE_90,
    Image.Transpose.ROTATE_270,
    Image.Transpose.TRANSPOSE,
    Image.Transpose.TRANSVERSE,
)


class Facts(NamedTuple):
    """Facts of an image file.

    Attributes:
      width, height: in pixels, of the upright picture; 1 if its header cannot be read.
      size: of the file in bytes.
      has_exif: whether it has EXIF data, as photos of cameras do.
      format: as Pillow calls it; "" if its header cannot be read.
    """

    width: int = 1
    height: int = 1
    size: int = 1
    has_exif: bool = False
    format: str = ""

    def vector(self) -> np.ndarray:
        """The facts as float32 [d], of which a doubling counts as much as another format.

        They are logarithms to base 2 of width, height, their ratio and bytes per pixel; then 0 or 1
        for EXIF data and for each format.
        """
        pixels = self.width * self.height
        numbers = (self.width, self.height, self.width / self.height, self.size / pixels)
        flags = (self.has_exif, *(self.format == format for format in _FORMATS))
        return np.array([*map(math.log2, numbers), *flags], np.float32)

    @classmethod
    def of_vector(cls, vector: np.ndarray) -> "Facts":
        """The facts that a vector has; its size is rounded."""
        width, height, _, density = np.exp2(vector[:4].astype(float))
        name = next((_FORMATS[i] for i in np.flatnonzero(vector[5:])), "")
        size = round(density * width * height)
        return cls(round(width), round(height), size, bool(vector[4]), name)


RINGS = 6  # of the spectrum
_SIDE = 128
# Columns of the vector of a file.
FILE, DETAIL = slice(0, len(Facts().vector())), slice(len(Facts().vector()), None)
LENGTH = FILE.stop + RINGS * SECTORS + 6
# What to decode, see :func:`e3jax.images.decoding.decode`: of JPEG files only as much as it has.
WANTED = (_SIDE // 2, lambda picture: to_square(picture, _SIDE, "squash"))


def detail(square: Image.Image | HighDepthImage) -> np.ndarray:
    """:func:`e3jax.images.statistics.statistics` of what is :data:`WANTED`, float32 [42].

    Files of more than 8 bits have black and white of their own.
    """
    is_deep = isinstance(square, HighDepthImage)
    pixels = square.to_uint8(common_range([square], ValueRange())) if is_deep else square
    return statistics(np.asarray(pixels, np.float32) / 255, RINGS)


def file_facts(source: str | os.PathLike | bytes) -> Facts:
    """The facts of an image file, a path or its content; only its header is read.

    Raises:
      OSError: it cannot be read, or is not a regular file.
    """
    is_content = isinstance(source, bytes)
    with io.BytesIO(source) if is_content else formats.open_regular(source) as file:
        size = max(file.seek(0, io.SEEK_END), 1)
        file.seek(0)
        try:
            picture = Image.open(file, formats=formats.readable_formats())
            width, height = picture.size
            # Asked for its EXIF data, a PNG file without any is decoded.
            has_exif = "exif" in picture.info
            if has_exif and orientation(picture, None) in _QUARTER_TURNS:
                width, height = height, width
            return Facts(width, height, size, has_exif, picture.format or "")
        except Exception:  # of any type, as decoders raise for damaged files
            return Facts(size=size)
