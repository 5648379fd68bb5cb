"""Convolutional autoencoder (Masci et al. 2011): what it reconstructs badly is an outlier.

Two scores from one training: ``cae`` is minus the summed squared error, ``cae-if`` an isolation
forest on the codes. With operations, both training and error are over all views of an image.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from e3jax import training
from e3jax.training import rules
from e3jax.training.batch import Batch
from e3jax.training.method import Evaluated, Method


class Reconstructions(NamedTuple):
    """What is known of n images: float32 error [n], mean over views, and code [n, latent]."""

    error: Any
    code: Any


def paper_config(grey: bool) -> training.TrainConfig:
    """The paper's training: 250 epochs with Adam."""
    return training.TrainConfig(network="cae-256", operations="", optimizer="adam")


def quick_config() -> training.TrainConfig:
    """100 steps of 32 images: about 6 s for 500 grey images on one core, with a second start.

    Tuned on MNIST only: trained longer on so few images, it reconstructs outliers too.
    """
    return paper_config(grey=True)._replace(steps=100, batch_size=32)


def squared_error(x: jax.Array, reconstruction: jax.Array) -> jax.Array:
    """Sums over the pixels of each image: [..., h, w, c] -> [...]."""
    return jnp.square(x - reconstruction).sum((-3, -2, -1))


def loss(outputs: tuple, batch: Batch, extra: Any) -> tuple[jax.Array, Any]:
    """Mean squared error over pixels."""
    reconstruction, _ = outputs
    return jnp.square(batch.views - reconstruction).mean((1, 2, 3)), extra


def evaluate(x: jax.Array, outputs: tuple, labels: np.ndarray) -> Reconstructions:
    """Errors are those of the views where there are any, codes those of the images themselves."""
    reconstruction, code = outputs
    error = squared_error(x, reconstruction)
    return Reconstructions((error[:, 1:] if x.shape[1] > 1 else error).mean(1), code[:, 0])


def minus_error(evaluated: Evaluated) -> np.ndarray:
    """Scores, float32 [n]."""
    return -evaluated.evaluation.error


def _forest(evaluated: Evaluated) -> np.ndarray:
    return rules.isolation_forest(evaluated.key, evaluated.evaluation.code)


CAE = Method(
    loss=loss,
    evaluate=evaluate,
    scores={"cae": minus_error, "cae-if": _forest},
    paper_config=paper_config,
    quick_config=quick_config,
)


def variant(name: str, **changed: Any) -> Method:
    """CAE with other values in its configs, and with only its error as the score ``name``."""
    return dataclasses.replace(
        CAE,
        scores={name: minus_error},
        paper_config=lambda grey: paper_config(grey)._replace(**changed),
        quick_config=lambda: quick_config()._replace(**changed),
    )
