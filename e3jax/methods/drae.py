"""Discriminative reconstructions (Xia et al. 2015): an autoencoder for the estimated inliers.

In every batch the reconstruction errors are split in two by the threshold that separates them best;
only those below it are reduced, and the two sides are driven apart.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from e3jax import devices
from e3jax.methods import cae
from e3jax.training.batch import Batch

_RATIO_WEIGHT = 0.1


def loss(outputs: tuple, batch: Batch, extra: Any) -> tuple[jax.Array, Any]:
    """The mean error below the threshold and the scatter within both sides, of the whole batch."""
    errors = cae.squared_error(batch.views, outputs[0])
    mean, ratio = split(devices.gather_over_devices(errors))
    return jnp.broadcast_to(mean + _RATIO_WEIGHT * ratio, errors.shape), extra


def split(errors: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits errors [b] by the threshold with the least scatter within the two sides.

    Returns:
      the mean error below the threshold, and the ratio of the scatter (sum of squared distances to
      the mean) within the sides to that of all errors, in [0, 1].
    """
    b = len(errors)
    ordered = jnp.sort(errors)
    # Around the mean of all, total = within + between, and between follows from prefix sums.
    centred = ordered - ordered.mean()
    below = jnp.arange(1, b)
    between = jnp.cumsum(centred)[:-1] ** 2 * (1 / below + 1 / (b - below))
    ratio = 1 - between / jnp.maximum(jnp.sum(centred**2), 1e-12)  # 1 if all errors are the same
    best = jnp.argmin(ratio)
    return jnp.mean(ordered, where=jnp.arange(b) <= best), ratio[best]


DRAE = dataclasses.replace(
    cae.CAE,
    loss=loss,
    scores={"drae": cae.minus_error},
    constants=lambda: {"ratio_weight": _RATIO_WEIGHT},
)
