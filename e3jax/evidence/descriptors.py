"""Descriptors: classical summaries of an image, and how far images are from a collection by them.

Nothing is trained. A descriptor is a pure function of one image of any side, so it is vmapped.
Distances are those to the nearest of at most 1,000 reference images, drawn from the collection, so
they cost the same per image however large it is.

To add a descriptor, register one :class:`Descriptor` in ``DESCRIPTORS``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf

from e3jax import devices
from e3jax.training import sampling

# Chosen by results on MNIST alone. A fixed number of neighbours fails in large collections, where
# outliers of one kind become each other's neighbours.
_REFERENCES, _NEIGHBOURS = 1000, 0.05
_CELLS, _ORIENTATIONS = 8, 9
_RINGS, _SECTORS = 4, 6
# Orthonormal (van de Sande et al. 2010).
_OPPONENT = np.float32([[1, 1, 1], [1, -1, 1], [1, 0, -2]]) / np.float32([3, 2, 6]) ** 0.5
# Images that are described before their distances are taken.
_CHUNK = 4096


class Descriptor(NamedTuple):
    """A summary of an image.

    Attributes:
      describe: ``float32 [h, w, c] in [0, 1] -> float32 [d]``.
      whitened: whether its entries are scaled and decorrelated before distances are taken, because
        they are of different kinds: by the collection's covariance (Ledoit & Wolf 2004).
    """

    describe: Callable[[jax.Array], jax.Array]
    whitened: bool = False


# --- Descriptors -------------------------------------------------------------------------------


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
    apart = jnp.abs(place[..., None] - np.arange(_ORIENTATIONS)[None, None])
    votes = jnp.maximum(1 - jnp.minimum(apart, _ORIENTATIONS - apart), 0) * length[..., None]
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
    apart = np.abs(direction - np.arange(_SECTORS)[:, None, None])
    sectors = np.maximum(1 - np.minimum(apart, _SECTORS - apart), 0)
    parts = (rings[:, None] * sectors).reshape(-1, h, w)
    return (parts / np.maximum(parts.sum((1, 2), keepdims=True), 1e-6)).astype(np.float32)


DESCRIPTORS: dict[str, Descriptor] = {
    "shape": Descriptor(shape),
    "layout": Descriptor(layout),
    "statistics": Descriptor(statistics, whitened=True),
}


# --- Collections -------------------------------------------------------------------------------


class References(NamedTuple):
    """What distances to a collection need, for one descriptor.

    Attributes:
      features: float32 [r, d], what is compared with.
      axes: float32 [d, d], what features are multiplied by before; [0, 0] if they are not.
    """

    features: np.ndarray
    axes: np.ndarray

    def distances(self, features: np.ndarray) -> np.ndarray:
        """The mean Euclidean distance to the nearest 5 % of the references: float64 [n].

        The nearest of all is left out: it is the image itself if that is a reference.
        """
        # Not by a product of matrices, whose rounding gives equal images different distances.
        distances = cdist(_along(self.axes, features), self.features)
        count = min(math.ceil(_NEIGHBOURS * distances.shape[1]) + 1, distances.shape[1])
        nearest = np.sort(np.partition(distances, count - 1)[:, :count])
        return nearest[:, min(1, count - 1) :].mean(axis=1)


def _references(features: np.ndarray, whitened: bool) -> References:
    axes = _whitening(features) if whitened else np.zeros((0, 0), np.float32)
    return References(_along(axes, features), axes)


def _along(axes: np.ndarray, features: np.ndarray) -> np.ndarray:
    # einsum sums every row alike, see above.
    return np.einsum("nd,de->ne", features, axes) if axes.size else features


def _whitening(features: np.ndarray) -> np.ndarray:
    """float32 [d, d]: along these axes features [n, d] have about the unit matrix as covariance."""
    deviation = features.std(axis=0, dtype=np.float64) + 1e-6
    covariance = LedoitWolf().fit(features / deviation).covariance_
    variance, directions = np.linalg.eigh(covariance)
    return np.float32(directions / np.sqrt(np.maximum(variance, 1e-6)) / deviation[:, None])


def fit(
    key: jax.Array, images: np.ndarray, names: Sequence[str] = (), *, mesh: Mesh | None = None
) -> dict[str, References]:
    """Keeps what distances to a collection need.

    Args:
      key: draws the references of a collection of more than 1,000 images.
      images: uint8 [n, h, w, c], n >= 2.
      names: of ``DESCRIPTORS``; all if none is given.
      mesh: devices to split the images over (default: all).

    Raises:
      ValueError: for an unknown descriptor.
    """
    names = tuple(names) or tuple(DESCRIPTORS)
    if unknown := set(names) - set(DESCRIPTORS):
        known = ", ".join(DESCRIPTORS)
        raise ValueError(f"unknown descriptor {min(unknown)!r}: expected one of {known}")
    if len(images) > _REFERENCES:
        images = images[sampling.choose(key, len(images), _REFERENCES)]
    found = _describe(names, mesh)((), images)
    return {name: _references(found[name], DESCRIPTORS[name].whitened) for name in names}


def distances(
    references: Mapping[str, References],
    images: np.ndarray,
    *,
    mesh: Mesh | None = None,
    on_progress: Callable[[str, int, int], None] = lambda stage, done, total: None,
) -> dict[str, np.ndarray]:
    """How far images are from a collection by each descriptor, float64 [n], larger = farther.

    Args:
      references: of :func:`fit`.
      images: uint8 [n, h, w, c], of the side and channels of the collection.
      mesh: devices to split the images over (default: all).
      on_progress: called as ("describing", images done, n).
    """
    names, n, parts = tuple(references), len(images), []
    describe = _describe(names, mesh)
    for start in range(0, n, _CHUNK):
        found = describe((), images[start : start + _CHUNK])
        parts.append([references[name].distances(found[name]) for name in names])
        on_progress("describing", min(start + _CHUNK, n), n)
    return dict(zip(names, np.concatenate(parts, axis=1), strict=True))


def _describe(names: tuple[str, ...], mesh: Mesh | None) -> devices.BatchMap:
    """The program that describes images; another one if a name comes to stand for another."""
    describe = tuple(DESCRIPTORS[name].describe for name in names)
    return _describer(names, describe, mesh or devices.device_mesh())


@devices.cached_program
def _describer(names: tuple[str, ...], describe: tuple[Callable, ...], mesh: Mesh):
    def of_some(_, images: jax.Array) -> dict[str, jax.Array]:
        x = images.astype(jnp.float32) / 255
        return {name: jax.vmap(f)(x) for name, f in zip(names, describe, strict=True)}

    return devices.BatchMap(of_some, mesh, 256, 32, "float32")
