"""Statistics of an image: power spectrum, contrast and colours; nothing is trained."""

import functools
from types import ModuleType
from typing import Any

import numpy as np

SECTORS = 6  # of directions
# Orthonormal (van de Sande et al. 2010).
_OPPONENT = np.array([[1, 1, 1], [1, -1, 1], [1, 0, -2]], "f4") / np.array([3, 2, 6], "f4") ** 0.5


def statistics(x: Any, rings: int, xp: ModuleType = np) -> Any:
    """Logarithms of the grey power spectrum and of contrast, and the mean of each channel.

    The spectrum, under a Hann window, is averaged over rings of equal ratio times 6 directions,
    shared linearly between neighbouring directions. Channels of colour are opponent ones: light,
    red against green, yellow against blue.

    Args:
      x: float32 [h, w, c] in [0, 1].
      rings: how many.
      xp: the library of the arrays, numpy or jax.numpy.

    Returns:
      float32 [rings * 6 + 2 * c]: the spectrum, from low frequencies to high ones; means;
      contrasts.
    """
    planes = xp.stack([x[..., channel] for channel in range(x.shape[-1])])
    grey = planes.mean(0)
    window = np.float32(np.outer(*(np.hanning(side + 2)[1:-1] for side in grey.shape)))
    grey = (grey - (grey * window).sum() / window.sum()) * window
    power = xp.abs(xp.fft.fft2(grey)) ** 2 / grey.size
    parts = xp.einsum("phw,hw->p", _parts_of_spectrum(*grey.shape, rings), power)
    if len(planes) == 3:
        planes = xp.tensordot(_OPPONENT.T, planes, 1)
    means, contrasts = planes.mean((1, 2)), planes.std((1, 2))
    return xp.concatenate([xp.log(parts + 1e-5), means, xp.log(contrasts + 1e-2)])


@functools.cache
def _parts_of_spectrum(h: int, w: int, rings: int) -> np.ndarray:
    """float32 [rings * sectors, h, w], weights that sum to 1 over each part."""
    row, column = np.fft.fftfreq(h)[:, None], np.fft.fftfreq(w)
    radius, direction = np.hypot(row, column), np.arctan2(row, column) % np.pi / np.pi * SECTORS
    edges = np.geomspace(0.6 / min(h, w), 0.5, rings + 1)[:, None, None]
    of_ring = (edges[:-1] < radius) & (radius <= edges[1:])
    distance = np.abs(direction - np.arange(SECTORS)[:, None, None])
    of_sector = np.maximum(1 - np.minimum(distance, SECTORS - distance), 0)
    parts = (of_ring[:, None] * of_sector).reshape(-1, h, w)
    return (parts / np.maximum(parts.sum((1, 2), keepdims=True), 1e-6)).astype(np.float32)
