"""Thumbnails as WebP files."""

import io

import numpy as np

from e3jax.images.deep import Deep
from e3jax.images.squares import to_picture


def shrunk(picture, side: int):
    """Shrinks a Pillow image in place."""
    picture.thumbnail((side, side), reducing_gap=3)
    return picture


def encoded(picture) -> bytes | Deep:
    """A WebP file's content, lossless if it is small; a `Deep` waits for the collection's scale."""
    if isinstance(picture, (Deep, bytes)):
        return picture
    if isinstance(picture, np.ndarray):
        picture = to_picture(picture)
    content = io.BytesIO()
    picture.save(content, "WEBP", lossless=max(picture.size) <= 64, quality=80, method=1)
    return content.getvalue()
