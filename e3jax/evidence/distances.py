"""Distances: how far images are from a collection by a descriptor.

They are those to the nearest of at most 1,000 reference images, drawn from the collection, so they
cost the same per image however large it is.
"""

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from scipy.spatial.distance import cdist
from sklearn.covariance import LedoitWolf

from e3jax import devices
from e3jax.collection.lazy import AnyArray
from e3jax.evidence.kind import Context, Fit, Kind, Measured
from e3jax.training import sampling

Describe = Callable[[jax.Array], jax.Array]
# Chosen by results on MNIST. A fixed number of neighbours fails in large collections, where
# outliers of one kind become each other's neighbours.
_REFERENCES, _NEIGHBOURS = 1000, 0.05
_BLOCK = 4096  # images that are described before their distances are taken


class References(NamedTuple):
    """What distances to a collection need, for one descriptor.

    Attributes:
      features: float32 [r, d], what is compared with.
      axes: float32 [d, d], what features are multiplied by before; [0, 0] if they are not.
    """

    features: np.ndarray
    axes: np.ndarray

    @property
    def vectors(self) -> np.ndarray:
        """The features as they were before they were whitened, float [r, d]."""
        return np.linalg.solve(self.axes.T, self.features.T).T if self.axes.size else self.features

    def distances(self, features: np.ndarray) -> np.ndarray:
        """The mean Euclidean distance to the nearest 5 % of the references: float64 [n].

        The nearest of all is left out: it is the image itself if that is a reference.
        """
        # Not by a product of matrices, whose rounding gives equal images different distances.
        distances = cdist(_along(self.axes, features), self.features)
        count = min(math.ceil(_NEIGHBOURS * distances.shape[1]) + 1, distances.shape[1])
        nearest = np.sort(np.partition(distances, count - 1)[:, :count])
        return nearest[:, min(1, count - 1) :].mean(axis=1)


def descriptor(
    name: str, describe: Describe, *, whitened: bool = False, weight: float = 1 / 4
) -> Kind:
    """The evidence that an image is far from the collection by a descriptor.

    Args:
      name: for people, "unusual ``name``".
      describe: ``float32 [h, w, c] in [0, 1] -> float32 [d]``.
      whitened: whether its entries are scaled and decorrelated before distances are taken, because
        they are of different kinds: by the collection's covariance (Ledoit & Wolf 2004).
      weight: see :class:`Kind`; a quarter each, so that four weigh as much as the network.
    """

    def vectors(images: AnyArray, context: Context) -> np.ndarray:
        return described(describe, images, context.mesh)

    return _kind(vectors, name, whitened, weight=weight)


def given(
    name: str,
    input: str,
    *,
    columns: slice = slice(None),
    direction: bool = False,
    whitened: bool = False,
    weight: float,
    separated: bool = False,
    reasons: Callable[[References, np.ndarray], list[str]] | None = None,
) -> Kind:
    """The evidence that an image is far from the collection by vectors that come with it.

    Args:
      name: for people, "unusual ``name``".
      input: the vectors, see :class:`Kind`.
      columns: of the vectors that are compared.
      direction: whether they are compared by their directions only, after signed square roots, so
        that a few large numbers do not decide (Perronnin et al. 2010).
      whitened: see :func:`descriptor`.
      weight, separated: see :class:`Kind`.
      reasons: likewise, of these columns.
    """

    def vectors(rows: AnyArray, context: Context) -> np.ndarray:
        array = np.asarray(rows, np.float32)[:, columns]
        if direction:
            array = np.sign(array) * np.sqrt(np.abs(array))
            array = array / np.maximum(np.linalg.norm(array, axis=1, keepdims=True), 1e-12)
        return array

    in_words = reasons and functools.partial(_reasons, reasons, columns)
    about = {"input": input, "weight": weight, "separated": separated, "reasons": in_words}
    return _kind(vectors, name, whitened, **about)


def _reasons(
    reasons: Callable[[References, np.ndarray], list[str]],
    columns: slice,
    model: References,
    rows: AnyArray,
) -> list[str]:
    return reasons(model, np.asarray(rows)[:, columns])


def _kind(
    vectors: Callable[[AnyArray, Context], np.ndarray], name: str, whitened: bool = False, **options
) -> Kind:
    """The kind of evidence of distances between vectors float32 [m, d] of some items."""

    def fit(key: jax.Array, items: AnyArray, context: Context) -> Fit:
        if len(items) > _REFERENCES:
            items = items[sampling.choose(key, len(items), _REFERENCES)]
        return Fit(references(vectors(items, context), whitened))

    def measure(model: References, items: AnyArray, context: Context) -> Measured:
        values = [np.empty(0)]
        for start in range(0, len(items), _BLOCK):
            block = vectors(items[start : start + _BLOCK], context)
            values.append(model.distances(block))
            context.on_progress("describing", start + len(block), len(items))
        return Measured(np.concatenate(values))

    return Kind(fit=fit, measure=measure, model=References, phrase=f"unusual {name}", **options)


def references(features: np.ndarray, whitened: bool) -> References:
    """What distances to features float32 [r, d] need, r >= 2."""
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
    axes = directions / np.sqrt(np.maximum(variance, 1e-6)) / deviation[:, None]
    return axes.astype(np.float32)


def described(describe: Describe, images: AnyArray, mesh: Mesh | None = None) -> np.ndarray:
    """Vectors float32 [n, d] of images uint8 [n, h, w, c], on these devices or all."""
    return _describer(describe, mesh or devices.device_mesh())((), images)


@devices.cached_program
def _describer(describe: Describe, mesh: Mesh) -> devices.BatchMap:
    def of_block(_, images: jax.Array) -> jax.Array:
        return jax.vmap(describe)(images.astype(jnp.float32) / 255)

    return devices.BatchMap(of_block, mesh, 256, 32, "float32")
