"""Thumbnails as WebP files."""

import io

import numpy as np
from PIL import Image

from e3jax.images.high_depth import HighDepthImage
from e3jax.images.squares import to_picture


def shrunk(picture: Image.Image, side: int) -> Image.Image:
    """Shrinks a picture in place, so that no side is longer than ``side`` pixels."""
    picture.thumbnail((side, side), reducing_gap=3)
    return picture


def encoded(picture: Image.Image | np.ndarray | HighDepthImage) -> bytes | HighDepthImage:
    """A WebP file's content, lossless if it is small; a `HighDepthImage` as it is."""
    if isinstance(picture, HighDepthImage):
        return picture
    if isinstance(picture, np.ndarray):
        picture = to_picture(picture)
    content = io.BytesIO()
    picture.save(content, "WEBP", lossless=max(picture.size) <= 64, quality=80, method=1)
    return content.getvalue()
