"""Facts of a picture's file, which a small square of its pixels no longer shows."""

import io
import math
import os
from typing import NamedTuple

import numpy as np
from PIL import Image

from e3jax.images import formats
from e3jax.images.pillow import orientation

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


LENGTH = len(Facts().vector())


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
