"""Descriptors: classical summaries of an image; nothing is trained.

A descriptor is a pure function of one image of any side, so it is vmapped.
"""

import jax
import jax.numpy as jnp
import numpy as np

_CELLS, _ORIENTATIONS = 8, 9
_RINGS, _SECTORS = 4, 6
# Orthonormal (van de Sande et al. 2010).
_OPPONENT = np.array([[1, 1, 1], [1, -1, 1], [1, 0, -2]], "f4") / np.array([3, 2, 6], "f4") ** 0.5


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


def statistics(x: jax.Array) -> jax.Array:
    """Logarithms of the grey power spectrum and of contrast, and the mean of each channel.

    The spectrum, under a Hann window, is averaged over 4 rings of equal ratio times 6 directions,
    shared linearly between neighbouring directions: float32 [4 * 6 + 2 * c]. Channels of colour are
    opponent ones: light, red against green, yellow against blue.
    """
    grey = x.mean(-1)
    window = np.float32(np.outer(*(np.hanning(side + 2)[1:-1] for side in grey.shape)))
    grey = (grey - (grey * window).sum() / window.sum()) * window
    power = jnp.abs(jnp.fft.fft2(grey)) ** 2 / grey.size
    parts = jnp.einsum("phw,hw->p", _parts_of_spectrum(*grey.shape), power)
    x = x @ _OPPONENT if x.shape[-1] == 3 else x
    return jnp.concatenate([jnp.log(parts + 1e-5), x.mean((0, 1)), jnp.log(x.std((0, 1)) + 1e-2)])


def _parts_of_spectrum(h: int, w: int) -> np.ndarray:
    """float32 [rings * sectors, h, w], weights that sum to 1 over each part."""
    row, column = np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)
    radius, direction = np.hypot(row, column), np.arctan2(row, column) % np.pi / np.pi * _SECTORS
    edges = np.geomspace(0.6 / min(h, w), 0.5, _RINGS + 1)[:, None, None]
    rings = (edges[:-1] < radius) & (radius <= edges[1:])
    distance = np.abs(direction - np.arange(_SECTORS)[:, None, None])
    sectors = np.maximum(1 - np.minimum(distance, _SECTORS - distance), 0)
    parts = (rings[:, None] * sectors).reshape(-1, h, w)
    return (parts / np.maximum(parts.sum((1, 2), keepdims=True), 1e-6)).astype(np.float32)
