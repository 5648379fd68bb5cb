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

    def distances(self, features: np.ndarray, mesh: Mesh | None = None) -> np.ndarray:
        """The mean Euclidean distance to the nearest 5 % of the references: float64 [n].

        The nearest of all is left out: it is the image itself if that is a reference. Equal rows
        have equal distances, in any company.

        Args:
          features: float32 [n, d].
          mesh: devices to split them over; None: all.
        """
        if not len(features):
            return np.empty(0)
        count = len(self.features)
        # Filled up, so that collections of any size share a program.
        columns = np.zeros((features.shape[1], -(-count // _REFERENCES) * _REFERENCES), np.float32)
        columns[:, :count] = self.features.T
        nearest = min(math.ceil(_NEIGHBOURS * count) + 1, count)
        shared = (columns, np.int32(count), np.int32(nearest))
        measure = _measurer(mesh or devices.device_mesh())
        rows = np.asarray(_along(self.axes, features), np.float32)
        return measure(shared, rows).astype(np.float64)


@devices.cached_program
def _measurer(mesh: Mesh) -> devices.BatchMap:
    # Row by row on a CPU, where the rounding of several might depend on their places.
    return devices.BatchMap(_distances, mesh, 512, 1 if devices.is_cpu(mesh) else 64, "float32")


def _distances(shared: tuple[jax.Array, ...], rows: jax.Array) -> jax.Array:
    """Inside a program: distances [b] of rows [b, d], see :meth:`References.distances`.

    ``shared`` is the references [d, r], how many of the r there are, and how many of these are the
    nearest.
    """
    columns, count, nearest = shared
    most = math.ceil(_NEIGHBOURS * columns.shape[1]) + 1

    def of_row(row: jax.Array) -> jax.Array:
        squares = jax.lax.platform_dependent(row, columns, cpu=_squares_by_loop, default=_squares)
        squares = jnp.where(jnp.arange(len(squares)) < count, squares, jnp.inf)
        distances = jnp.sqrt(-jax.lax.top_k(-squares, most)[0])
        first, place = jnp.minimum(1, nearest - 1), jnp.arange(most)
        is_taken = (first <= place) & (place < nearest)
        return jnp.where(is_taken, distances, 0).sum() / (nearest - first)

    return jax.vmap(of_row)(rows)


def _squares(row: jax.Array, columns: jax.Array) -> jax.Array:
    # Not by a product of matrices, of whose rounding small distances would consist.
    return ((columns - row[:, None]) ** 2).sum(0)


def _squares_by_loop(row: jax.Array, columns: jax.Array) -> jax.Array:
    """The same in a quarter of the time on a CPU, which would add number by number."""

    def add(i: jax.Array, total: jax.Array) -> jax.Array:
        return total + (columns[i] - row[i]) ** 2

    return jax.lax.fori_loop(0, len(row), add, jnp.zeros_like(columns[0]))


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
            values.append(model.distances(block, context.mesh))
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
