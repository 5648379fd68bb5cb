"""Discriminative reconstructions (Xia et al. 2015): an autoencoder for the estimated inliers.

In every batch the reconstruction errors are split in two by the threshold that separates them best;
only those below it are reduced, and the two sides are driven apart.
"""

import jax
import jax.numpy as jnp
import numpy as np

from e3jax import devices, scoring
from e3jax.baselines import autoencoder, cae
from e3jax.baselines.autoencoder import Config, Info, Progress

_RATIO_WEIGHT = 0.1


def paper_config() -> Config:
    """The paper's: 250 epochs."""
    return Config()


def quick_config() -> Config:
    """100 steps of 32 images: about 6 s for 500 grey images on one core, with a second start.

    As :func:`e3jax.baselines.cae.quick_config`, chosen on MNIST alone.
    """
    return Config(steps=100, batch_size=32)


def score(
    key: jax.Array,
    images: np.ndarray,
    config: Config,
    mesh: jax.sharding.Mesh | None = None,
    on_progress: Progress = autoencoder.silent,
) -> tuple[dict[str, np.ndarray], Info]:
    """``drae``, minus the squared error; arguments and result as in :mod:`e3jax.baselines`."""
    model = make_model(config, images.shape, mesh)
    errors, _, loss = cae.reconstruct(key, images, config, model, on_progress)
    info = Info(config.num_steps(len(images)), loss, scoring.values_health(-errors))
    return {"drae": -errors}, info


def make_model(config, shape, mesh) -> autoencoder.Model:
    """For images of this shape."""
    return cae.make_model(config, shape, mesh, _loss)


def _loss(x: jax.Array, reconstruction: jax.Array, code: jax.Array) -> jax.Array:
    errors = devices.gather_over_devices(autoencoder.squared_error(x, reconstruction))
    mean, ratio = split(errors)
    return mean + _RATIO_WEIGHT * ratio


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
