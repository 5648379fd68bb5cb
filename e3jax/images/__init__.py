"""One image: arrays, formats, decoding, squares, thumbnails."""

from e3jax.images.arrays import BLOCK, checked, pad_to, resize, to_uint8, to_unit
from e3jax.images.extremes import usual_range, value_extremes
from e3jax.images.grounds import opaque
from e3jax.images.squares import to_picture, to_square

__all__ = [
    "BLOCK",
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
