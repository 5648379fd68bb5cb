"""Deep autoencoding Gaussian mixture model (Zong et al. 2018): outliers are unlikely under it.

An estimation network assigns every image's code and reconstruction error, z, to the components of a
mixture, which follows from the assignment in closed form; all is trained together. Legend: ``d``
entries of z, ``m`` components.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np

from e3jax import devices, networks, scoring
from e3jax.baselines import autoencoder
from e3jax.baselines.autoencoder import Config, Info, Progress

_ENERGY_WEIGHT = 0.1
_DIAGONAL_WEIGHT = 0.005
_JITTER = 1e-6


class Mixture(NamedTuple):
    """weight [m], mean [m, d], and covariance's Cholesky factor [m, d, d], lower triangular."""

    weight: jax.Array
    mean: jax.Array
    factor: jax.Array


def paper_config() -> Config:
    """The authors': 200 epochs in batches of 1,024 images, without L2."""
    return Config(epochs=200, batch_size=1024, learning_rate=1e-4, weight_decay=0.0, latent=5)


def quick_config() -> Config:
    """200 steps of 64 images: about 20 s for 500 grey images on one core, with a second start.

    Steps, batch and learning rate were chosen by results on MNIST alone.
    """
    return paper_config()._replace(steps=200, batch_size=64, learning_rate=1e-3)


def score(
    key: jax.Array,
    images: np.ndarray,
    config: Config,
    mesh: jax.sharding.Mesh | None = None,
    on_progress: Progress = autoencoder.silent,
) -> tuple[dict[str, np.ndarray], Info]:
    """``dagmm``, minus the energy; arguments and result as in :mod:`e3jax.baselines`.

    The mixture is that of all images, as in the method's paper (the authors of E3Outlier take the
    last batch's).
    """
    model = make_model(config, images.shape, mesh)
    total = config.num_steps(len(images))
    variables, _, loss = autoencoder.fit(model, key, images, total, on_progress)
    z, membership = model.evaluate(variables, images)
    scores = -np.asarray(energy(z, mixture(z, membership)))
    return {"dagmm": scores}, Info(total, loss, scoring.values_health(scores))


def make_model(config, shape, mesh) -> autoencoder.Model:
    """For images of this shape; it gives their z and memberships."""
    network = networks.MixtureAutoencoder(config.latent, axis_name=devices.AXIS)
    return autoencoder.make_model(config, network, _loss, _z_and_membership, shape, mesh)


def _loss(x, reconstruction, z, membership) -> jax.Array:
    z, membership = devices.gather_over_devices((z, membership))
    of_batch = mixture(z, membership)
    variances = jnp.square(of_batch.factor).sum(-1)
    return (
        jnp.square(x - reconstruction).mean()
        + _ENERGY_WEIGHT * energy(z, of_batch).mean()
        + _DIAGONAL_WEIGHT * jnp.sum(1 / variances)
    )


@devices.in_float32
def mixture(z: jax.Array, membership: jax.Array) -> Mixture:
    """The mixture of z [n, d] with memberships [n, m] (eq. 5)."""
    size = membership.sum(0)
    mean = jnp.einsum("nm,nd->md", membership, z) / size[:, None]
    apart = z[:, None] - mean
    covariance = jnp.einsum("nm,nmd,nme->mde", membership, apart, apart) / size[:, None, None]
    covariance += _JITTER * jnp.eye(z.shape[1])
    return Mixture(size / len(z), mean, jnp.linalg.cholesky(covariance))


@devices.in_float32
def energy(z: jax.Array, of: Mixture) -> jax.Array:
    """Minus the log density in nats of z [n, d] (eq. 6): float [n], larger = more outlying."""

    def log_density(mean, factor):
        scaled = jax.scipy.linalg.solve_triangular(factor, (z - mean).T, lower=True)
        log_root = jnp.log(jnp.diagonal(factor)).sum()
        return -0.5 * (jnp.square(scaled).sum(0) + z.shape[1] * jnp.log(2 * jnp.pi)) - log_root

    log_densities = jax.vmap(log_density)(of.mean, of.factor)
    return -jax.nn.logsumexp(log_densities + jnp.log(of.weight)[:, None], axis=0)


def _z_and_membership(x, reconstruction, z, membership):
    return z[:, 0], membership[:, 0]
