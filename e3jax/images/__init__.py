"""One image: arrays, formats, decoding, squares, thumbnails."""

from e3jax.images.arrays import (
    checked,
    pad_to,
    to_uint8,
    to_unit,
    usual_range,
    value_extremes,
)
from e3jax.images.squares import opaque, resize, to_picture, to_square

__all__ = [
    "checked",
    "opaque",
    "pad_to",
    "resize",
    "to_picture",
    "to_square",
    "to_uint8",
    "to_unit",
    "usual_range",
    "value_extremes",
]
