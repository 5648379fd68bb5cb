"""Robust deep autoencoder (Zhou & Paffenroth 2017): images X = L + S, S sparse in images.

Rounds of training on L = X - S alternate with shrinking the residual R = X - reconstruction, image
by image: S = max(0, 1 - threshold / |R|) R. An image whose residual exceeds the threshold is so
replaced by one at that distance from its own reconstruction, and influences the network less.

The threshold is the median of |R| in every round: as long as outliers are the minority, it is that
of an inlier. (The authors' 0.00065 would put nearly all of every residual into S.)
"""

import dataclasses

import jax
import numpy as np

from e3jax.methods import cae
from e3jax.training.method import Evaluated

_ROUNDS = 20


def shrink(residual: np.ndarray, threshold: float) -> np.ndarray:
    """The S that minimises threshold * sum_i |S_i| + |S - residual|^2 / 2, with norms of images.

    The proximal operator of the l2,1 norm over images [n, h, w, c].
    """
    return (1 - threshold / np.maximum(_norm(residual), threshold)) * residual


def _norm(images: np.ndarray) -> np.ndarray:
    """The norm of each image, [n, 1, 1, 1]."""
    return np.sqrt(np.square(images).sum((1, 2, 3), keepdims=True))


def without_outliers(x: jax.Array, index: jax.Array, sparse: jax.Array) -> jax.Array:
    """L = X - S, of images [b, h, w, c] or their views, and the images' places [b]."""
    return x - sparse[index].reshape(len(x), *[1] * (x.ndim - 4), *x.shape[-3:])


def renew(residual: np.ndarray) -> np.ndarray:
    """S of the next round, from the residuals of all images."""
    return shrink(residual, np.median(_norm(residual)))


def _minus_energy(evaluated: Evaluated) -> np.ndarray:
    return -(_norm(evaluated.evaluation) ** 2).ravel()


RDAE = dataclasses.replace(
    cae.CAE,
    evaluate=lambda x, outputs, labels: (x - outputs[0])[:, 0],
    scores={"rdae": _minus_energy},
    # The paper's 20 rounds of one epoch.
    paper_config=lambda grey: cae.paper_config(grey)._replace(epochs=_ROUNDS),
    constants=lambda: {"rounds": _ROUNDS, "threshold": "median"},
    rounds=_ROUNDS,
    extra=lambda images: np.zeros(images.shape, np.float32),
    renew=renew,
    inputs=without_outliers,
)
