"""One image: arrays, formats, decoding, squares, thumbnails."""

from e3jax.images.arrays import (
    BLOCK as BLOCK,
    checked as checked,
    pad_to as pad_to,
    resize as resize,
    to_uint8 as to_uint8,
    to_unit as to_unit,
)
from e3jax.images.extremes import usual_range as usual_range, value_extremes as value_extremes
from e3jax.images.grounds import opaque as opaque
from e3jax.images.squares import to_picture as to_picture, to_square as to_square
