"""Robust deep autoencoder (Zhou & Paffenroth 2017): images X = L + S, S sparse in images.

Rounds of training on L = X - S alternate with a shrink of the residual R = X - reconstruction, by
images: S = max(0, 1 - threshold / |R|) R. So an image with a residual above the threshold is
replaced by one at this distance from its own reconstruction, and pulls the network less.
"""

import jax
import numpy as np

from e3jax import devices, networks, scoring, training
from e3jax.baselines import autoencoder, cae
from e3jax.baselines.autoencoder import Config, Info, Progress

_ROUNDS = 20


def paper_config() -> Config:
    """The paper's: 20 rounds of one epoch."""
    return Config(epochs=_ROUNDS)


def quick_config() -> Config:
    """20 rounds of 5 steps of 32 images: about 8 s for 500 grey images on one core.

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
    """``rdae``, minus |X - reconstruction|^2; arguments and result as in :mod:`e3jax.baselines`.

    The threshold is the median of |R|, anew in every round: as long as outliers are the minority,
    it is an inlier's. (The authors' 0.00065 would put nearly all of every residual into S.)
    """
    x = training.to_unit(images)
    model = make_model(config, images.shape, mesh)

    def without_outliers(variables, clean: np.ndarray) -> np.ndarray:
        residual = x - model.evaluate(variables, clean)
        return x - shrink(residual, np.median(_norm(residual)))

    total = config.num_steps(len(images))
    variables, clean, loss = autoencoder.fit(
        model, key, x, total, on_progress, _ROUNDS, without_outliers
    )
    scores = -(_norm(x - model.evaluate(variables, clean)) ** 2).ravel()
    return {"rdae": scores}, Info(total, loss, scoring.values_health(scores))


def score_as_published(
    key: jax.Array,
    images: np.ndarray,
    config: Config,
    mesh: jax.sharding.Mesh | None = None,
    on_progress: Progress = autoencoder.silent,
) -> tuple[dict[str, np.ndarray], Info]:
    """``rdae-as-published``: what the authors' numbers come from, called as :func:`score`.

    Their program's shrink always gives 0, so it trains a plain autoencoder for 20 epochs. (With the
    quick configs it is CAE from another start.)
    """
    model = cae.make_model(config, images.shape, mesh)
    errors, _, loss = cae.reconstruct(key, images, config, model, on_progress)
    info = Info(config.num_steps(len(images)), loss, scoring.values_health(-errors))
    return {"rdae-as-published": -errors}, info


def make_model(config, shape, mesh) -> autoencoder.Model:
    """For images of this shape; it gives their reconstructions."""
    network = networks.ConvAutoencoder(config.latent, devices.AXIS)
    loss = cae.mean_squared_error
    return autoencoder.make_model(config, network, loss, _reconstruction, shape, mesh)


def shrink(residual: np.ndarray, threshold: float) -> np.ndarray:
    """argmin over S of threshold * sum_i |S_i| + |S - residual|^2 / 2, |.| the norm of an image.

    The proximal operator of the l2,1 norm over images [n, h, w, c].
    """
    return (1 - threshold / np.maximum(_norm(residual), threshold)) * residual


def _norm(images: np.ndarray) -> np.ndarray:
    """Every image's, [n, 1, 1, 1]."""
    return np.sqrt(np.square(images).sum((1, 2, 3), keepdims=True))


def _reconstruction(x, reconstruction, code):
    return reconstruction[:, 0]
