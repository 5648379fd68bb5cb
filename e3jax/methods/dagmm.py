"""Deep autoencoding Gaussian mixture model (Zong et al. 2018): outliers are unlikely under it.

An estimation network assigns each image's code and reconstruction error, z, to the components of a
mixture, which follows from the assignment in closed form; all is trained together. Legend: ``d``
entries of z, ``m`` components.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import jax.scipy.linalg
import numpy as np

from e3jax import devices, training
from e3jax.training.batch import Batch
from e3jax.training.method import Evaluated, Method

_ENERGY_WEIGHT = 0.1
_DIAGONAL_WEIGHT = 0.005
_JITTER = 1e-6


class Mixture(NamedTuple):
    """weight [m], mean [m, d], and covariance's Cholesky factor [m, d, d], lower triangular."""

    weight: jax.Array
    mean: jax.Array
    factor: jax.Array


def paper_config(grey: bool) -> training.TrainConfig:
    """The authors' training: 200 epochs in batches of 1,024 images, without L2."""
    return training.TrainConfig(
        network="dagmm-5",
        operations="",
        optimizer="adam",
        learning_rate=1e-4,
        weight_decay=0.0,
        batch_size=1024,
        epochs=200,
    )


def quick_config() -> training.TrainConfig:
    """200 steps of 64 images: about 20 s for 500 grey images on one core, with a second start.

    Steps, batch and learning rate were tuned on MNIST only.
    """
    return paper_config(grey=True)._replace(steps=200, batch_size=64, learning_rate=1e-3)


def loss(outputs: tuple, batch: Batch, extra: Any) -> tuple[jax.Array, Any]:
    """Squared error, energy and the inverse variances of the whole batch's mixture."""
    reconstruction, z, membership = outputs
    z, membership = devices.gather_over_devices((z, membership))
    of_batch = mixture(z, membership)
    variances = jnp.square(of_batch.factor).sum(-1)
    shared = _ENERGY_WEIGHT * energy(z, of_batch).mean() + _DIAGONAL_WEIGHT * jnp.sum(1 / variances)
    return jnp.square(batch.views - reconstruction).mean((1, 2, 3)) + shared, extra


@devices.in_float32
def mixture(z: jax.Array, membership: jax.Array) -> Mixture:
    """The mixture of z [n, d] with memberships [n, m] (eq. 5)."""
    size = membership.sum(0)
    mean = jnp.einsum("nm,nd->md", membership, z) / size[:, None]
    distance = z[:, None] - mean[None]
    covariance = jnp.einsum("nm,nmd,nme->mde", membership, distance, distance) / size[:, None, None]
    covariance += _JITTER * jnp.eye(z.shape[1])[None]
    return Mixture(size / len(z), mean, jnp.linalg.cholesky(covariance))


@devices.in_float32
def energy(z: jax.Array, of: Mixture) -> jax.Array:
    """Minus the log density in nats of z [n, d] (eq. 6): float [n], larger = more outlying."""

    def log_density(mean, factor):
        scaled = jax.scipy.linalg.solve_triangular(factor, (z - mean[None]).T, lower=True)
        log_root = jnp.log(jnp.diagonal(factor)).sum()
        return -0.5 * (jnp.square(scaled).sum(0) + z.shape[1] * jnp.log(2 * jnp.pi)) - log_root

    log_densities = jax.vmap(log_density)(of.mean, of.factor)
    return -jax.nn.logsumexp(log_densities + jnp.log(of.weight)[:, None], axis=0)


@devices.settings()
def minus_energy(evaluated: Evaluated) -> np.ndarray:
    """Scores, float32 [n], under the mixture of all images, as in the method's paper.

    (The authors of E3Outlier take the last batch's.)
    """
    z, membership = map(jnp.asarray, evaluated.evaluation)
    return -np.asarray(energy(z, mixture(z, membership)))


DAGMM = Method(
    loss=loss,
    evaluate=lambda x, outputs, labels: (outputs[1][:, 0], outputs[2][:, 0]),
    scores={"dagmm": minus_energy},
    paper_config=paper_config,
    quick_config=quick_config,
    constants=lambda: {
        "energy_weight": _ENERGY_WEIGHT,
        "diagonal_weight": _DIAGONAL_WEIGHT,
        "jitter": _JITTER,
    },
)
