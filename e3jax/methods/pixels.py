"""What one would try first: scikit-learn on raw pixels. It shows what learning is worth."""

import math

import jax
import numpy as np
from sklearn.decomposition import PCA
from sklearn.neighbors import NearestNeighbors

from e3jax.training import rules

# Chosen, as e3jax's own quick protocol, by their results on MNIST alone.
_NEIGHBOURS = 0.05
_VARIANCE = 0.7
# By name, the constants that the scores depend on.
METHODS = {
    "pixel-if": {},
    "pixel-knn": {"neighbours": _NEIGHBOURS},
    "pixel-pca": {"variance": _VARIANCE},
}


def score(key: jax.Array, images: np.ndarray, method: str) -> np.ndarray:
    """Scores images by their own pixels.

    Args:
      key: seeds the isolation forest; the others are deterministic.
      images: uint8 [n, h, w, c], n >= 2.
      method: "pixel-if" (isolation forest, 100 trees), "pixel-knn" (minus the mean distance to the
        nearest 5 % of the others) or "pixel-pca" (minus the squared error left by the components
        that hold 70 % of the variance).

    Returns:
      float [n], smaller = more outlying.

    Raises:
      ValueError: for an unknown method.
    """
    x = images.reshape(len(images), -1).astype(np.float32) / 255
    if method == "pixel-if":
        return rules.isolation_forest(key, x)
    if method == "pixel-knn":
        neighbours = min(math.ceil(_NEIGHBOURS * len(x)), len(x) - 1)
        distances, _ = NearestNeighbors(n_neighbors=neighbours).fit(x).kneighbors()
        return -distances.mean(axis=1)
    if method == "pixel-pca":
        pca = PCA(n_components=_VARIANCE, svd_solver="full").fit(x)
        residual = x - pca.inverse_transform(pca.transform(x))
        return -np.square(residual).sum(axis=1)
    raise ValueError(f"unknown pixel method {method!r}: expected one of {', '.join(METHODS)}")
