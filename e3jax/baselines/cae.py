"""Convolutional autoencoder (Masci et al. 2011): what it reconstructs badly is an outlier.

Two scores from one training: ``cae`` is minus the summed squared error, ``cae-if`` an isolation
forest on the codes. With ``operations`` both training and error are over all views of an image,
the paper's control for the amount of data; ``latent=64`` is its control for the size of the code.
"""

import jax
import jax.numpy as jnp
import numpy as np

from e3jax import devices, networks, scoring
from e3jax.baselines import autoencoder, isolation_forest
from e3jax.baselines.autoencoder import Config, Info, Progress


def paper_config() -> Config:
    """The paper's: 250 epochs."""
    return Config()


def quick_config() -> Config:
    """100 steps of 32 images: about 6 s for 500 grey images on one core, with a second start.

    Chosen by results on MNIST alone: trained longer on so few images, it reconstructs outliers too.
    """
    return Config(steps=100, batch_size=32)


def score(
    key: jax.Array,
    images: np.ndarray,
    config: Config,
    mesh: jax.sharding.Mesh | None = None,
    on_progress: Progress = autoencoder.silent,
) -> tuple[dict[str, np.ndarray], Info]:
    """``cae`` and ``cae-if``; arguments and result as in :mod:`e3jax.baselines`."""
    train_key, forest_key = jax.random.split(key)
    model = make_model(config, images.shape, mesh)
    errors, codes, loss = reconstruct(train_key, images, config, model, on_progress)
    scores = {"cae": -errors, "cae-if": isolation_forest.score(forest_key, codes)}
    info = Info(config.num_steps(len(images)), loss, scoring.values_health(-errors))
    return scores, info


def make_model(config, shape, mesh, loss=None) -> autoencoder.Model:
    """For images of this shape; the loss is of a batch's (images, reconstructions, codes)."""
    network = networks.ConvAutoencoder(config.latent, devices.AXIS)
    loss = loss or mean_squared_error
    return autoencoder.make_model(config, network, loss, _errors_and_codes, shape, mesh)


def reconstruct(key, images, config, model, on_progress):
    """Trains a model of :func:`make_model`.

    Returns:
      every image's squared error [n] (its views' mean) and code [n, latent], and the last loss.
    """
    total = config.num_steps(len(images))
    variables, _, loss = autoencoder.fit(model, key, images, total, on_progress)
    errors, codes = model.evaluate(
        variables, images, lambda done: on_progress(total, total, "scoring")
    )
    return errors, codes, loss


def mean_squared_error(x: jax.Array, reconstruction: jax.Array, code: jax.Array) -> jax.Array:
    return jnp.square(x - reconstruction).mean()


def _errors_and_codes(x, reconstruction, code):
    return autoencoder.squared_error(x, reconstruction).mean(1), code[:, 0]
