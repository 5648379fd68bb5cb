"""Rotations by oblique angles as tables of cubic splines, after scipy.ndimage.rotate.

Shapes: ``a`` rotations, ``p = side * side`` pixels, ``h = side``.
"""

import numpy as np
import scipy.special

from e3jax.shapes import Float, Float32, Int, Int32

# A cubic spline reads a window of 4 x 4 coefficients around a point; at the border up to two of
# them in each direction lie outside the image and are mirrored.
TAPS = 4
PAD = 2


def rotation_table(
    angle: float, side: int, fill: str
) -> tuple[Int32[np.ndarray, " p"], Float32[np.ndarray, "p 4"], Float32[np.ndarray, "p 4"]]:
    """Tap, row and column weights of one rotation, at the points scipy.ndimage.rotate samples.

    SciPy's canvas grows until the whole rotated image fits; its window of the image's own size at
    floor((canvas - side) / 2) is kept.
    """
    cos, sin = scipy.special.cosdg(angle), scipy.special.sindg(angle)
    matrix = np.array([[cos, sin], [-sin, cos]])
    corners = matrix @ [[0, 0, side, side], [0, side, 0, side]]
    canvas = (np.ptp(corners, axis=1) + 0.5).astype(int)
    # Where the view's pixels lie on the grown canvas, relative to its centre: [2, p].
    place = np.indices((side, side)).reshape(2, -1)
    place = place + ((canvas - side) // 2 - (canvas - 1) / 2)[:, None]
    point = matrix @ place + (side - 1) / 2
    outside = ((point < 0) | (point > side - 1)).any(axis=0)
    if fill == "mirror":
        point = (side - 1) - np.abs((side - 1) - np.abs(point) % (2 * (side - 1)))
    point = np.clip(point, 0, side - 1)
    corner = np.floor(point).astype(np.int32)
    weights = _cubic_spline_weights(point - corner)
    if angle == 0:  # This row reads the pixels themselves, which are not spline coefficients.
        weights = np.broadcast_to(np.array([0.0, 1.0, 0.0, 0.0]), weights.shape)
    if fill == "grey":
        weights = np.where(outside[:, None], 0.0, weights)
    row, column = corner - 1 + PAD
    tap = row * (side + 2 * PAD) + column
    return tap.astype(np.int32), weights[0].astype(np.float32), weights[1].astype(np.float32)


def rotation_factor(
    first: Int[np.ndarray, "a p"],
    weight: Float[np.ndarray, "a p 4"],
    prefilter: Float[np.ndarray, "h h"],
) -> Float32[np.ndarray, "a p h"]:
    """The rotations in one dimension, as weights of the image's rows or columns.

    Args:
      first: the first padded coefficient that a view's pixel reads.
      weight: of the four coefficients from there on.
      prefilter: pixels -> coefficients; row 0 of the rotations reads pixels instead.
    """
    side = len(prefilter)
    padded = np.pad(np.eye(side), ((PAD, PAD), (0, 0)), mode="reflect")
    factor = np.einsum("apt,apth->aph", weight, padded[first[..., None] + np.arange(TAPS)])
    factor[1:] = factor[1:] @ prefilter
    return factor.astype(np.float32)


def _cubic_spline_weights(fraction: Float[np.ndarray, "..."]) -> Float[np.ndarray, "... 4"]:
    """Weights [..., 4] of the cubic B-spline at offsets -1, 0, 1, 2 from the pixel below a point.

    ``fraction`` [...] in [0, 1) is the point's distance from that pixel.
    """
    t = fraction[..., None] - np.arange(-1, 3)
    near, far = 2 / 3 - t**2 + np.abs(t) ** 3 / 2, np.maximum(2 - np.abs(t), 0) ** 3 / 6
    return np.where(np.abs(t) < 1, near, far)
