"""What one would try first: scikit-learn on raw pixels. It shows what learning is worth.

Constants were chosen, as those of the quick protocol, by results on MNIST.
"""

import math

import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from e3jax.training import rules
from e3jax.training.method import Evaluated, Method

_NEIGHBOURS = 0.05
_VARIANCE = 0.7


def _pixels(evaluated: Evaluated) -> np.ndarray:
    """float32 [n, h * w * c] in [0, 1]."""
    images = evaluated.images
    return images.reshape(len(images), -1).astype(np.float32) / 255


def isolation_forest(evaluated: Evaluated) -> np.ndarray:
    """Scores of an isolation forest of 100 trees, float [n], smaller = more outlying."""
    return rules.isolation_forest(evaluated.key, _pixels(evaluated))


def nearest_neighbours(evaluated: Evaluated) -> np.ndarray:
    """Minus the mean distance to the nearest 5 % of the others, float [n]."""
    x = _pixels(evaluated)
    neighbours = min(math.ceil(_NEIGHBOURS * len(x)), len(x) - 1)
    distances, _ = NearestNeighbors(n_neighbors=neighbours).fit(x).kneighbors()
    return -distances.mean(axis=1)


def principal_components(evaluated: Evaluated) -> np.ndarray:
    """Minus the squared error of the components that hold 70 % of the variance, float [n]."""
    x = _pixels(evaluated)
    pca = PCA(n_components=_VARIANCE, svd_solver="full").fit(x)
    residual = x - pca.inverse_transform(pca.transform(x))
    return -np.square(residual).sum(axis=1)


PIXELS = (
    Method(scores={"pixel-if": isolation_forest}),
    Method(scores={"pixel-knn": nearest_neighbours}, constants=lambda: {"neighbours": _NEIGHBOURS}),
    Method(scores={"pixel-pca": principal_components}, constants=lambda: {"variance": _VARIANCE}),
)
