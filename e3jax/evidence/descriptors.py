"""Descriptors: classical summaries of an image; nothing is trained.

A descriptor is a pure function of one image of any side, so it is vmapped.
"""

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.images.statistics import statistics as of_image

_CELLS, _ORIENTATIONS = 8, 9


def shape(x: jax.Array) -> jax.Array:
    """Histograms of oriented gradients (Dalal & Triggs 2005), float32 [8 * 8 * 9] of unit length.

    Each pixel votes with the gradient of its strongest channel, shared linearly between the two
    nearest of 9 orientations in [0, 180) degrees and the nearest of 8 x 8 cells. The histograms are
    normalised as a whole, by the square root of their shares, instead of block by block.
    """
    x = jnp.pad(x, ((1, 1), (1, 1), (0, 0)), mode="edge")
    down, right = x[2:, 1:-1] - x[:-2, 1:-1], x[1:-1, 2:] - x[1:-1, :-2]
    length = jnp.hypot(down, right)
    strongest = length.argmax(-1, keepdims=True)
    down, right, length = (
        jnp.take_along_axis(a, strongest, -1)[..., 0] for a in (down, right, length)
    )
    place = jnp.arctan2(down, right) % jnp.pi * _ORIENTATIONS / jnp.pi - 0.5
    distance = jnp.abs(place[..., None] - np.arange(_ORIENTATIONS)[None, None])
    votes = jnp.maximum(1 - jnp.minimum(distance, _ORIENTATIONS - distance), 0) * length[..., None]
    rows, columns = (_shared_between_cells(side) for side in votes.shape[:2])
    histograms = jnp.einsum("ah,bw,hwo->abo", rows, columns, votes)
    return jnp.sqrt(histograms / (histograms.sum() + 1e-6)).ravel()


def _shared_between_cells(side: int) -> np.ndarray:
    """float32 [cells, side]: how much of each pixel counts for each cell, linear in between."""
    place = (np.arange(side) + 0.5) / side * _CELLS - 0.5
    return np.maximum(1 - np.abs(place - np.arange(_CELLS)[:, None]), 0).astype(np.float32)


def layout(x: jax.Array) -> jax.Array:
    """The image in low resolution: means over 8 x 8 cells, float32 [8 * 8 * c] in [0, 1]."""
    rows, columns = (_means_of_cells(side) for side in x.shape[:2])
    return jnp.einsum("ah,bw,hwc->abc", rows, columns, x).ravel()


def _means_of_cells(side: int) -> np.ndarray:
    """float32 [cells, side], rows sum to 1."""
    start = np.arange(_CELLS)[:, None] * side / _CELLS
    pixel, end = np.arange(side), start + side / _CELLS
    inside = np.minimum(pixel + 1, end) - np.maximum(pixel, start)
    return (np.maximum(inside, 0) * _CELLS / side).astype(np.float32)


def coarse(x: jax.Array) -> jax.Array:
    """:func:`shape` of the image at half its resolution: outlines without their details."""
    h, w, c = x.shape
    return shape(x.reshape(h // 2, 2, w // 2, 2, c).mean((1, 3)))


def statistics(x: jax.Array) -> jax.Array:
    """:func:`e3jax.images.statistics.statistics` in 4 rings, float32 [4 * 6 + 2 * c]."""
    return of_image(x, 4, jnp)
