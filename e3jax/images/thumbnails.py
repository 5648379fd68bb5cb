"""Thumbnails as WebP files."""

import io

import numpy as np

from e3jax.images.high_depth import HighDepthImage
from e3jax.images.squares import to_picture


def shrunk(picture, side: int):
    """Shrinks a Pillow image in place."""
    picture.thumbnail((side, side), reducing_gap=3)
    return picture


def encoded(picture) -> bytes | HighDepthImage:
    """A WebP file's content, lossless if it is small; a `HighDepthImage` or bytes as they are."""
    if isinstance(picture, (HighDepthImage, bytes)):
        return picture
    if isinstance(picture, np.ndarray):
        picture = to_picture(picture)
    content = io.BytesIO()
    picture.save(content, "WEBP", lossless=max(picture.size) <= 64, quality=80, method=1)
    return content.getvalue()
