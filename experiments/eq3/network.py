"""An untrained network with one hidden layer of sigmoids: its gradients, and their kernel."""

import functools

import jax
import jax.numpy as jnp

from e3jax import priority

_BLOCK = 2500  # views at a time


def initialise(key: jax.Array, inputs: int, hidden: int, k: int) -> list[jax.Array]:
    """Biases and kernel of the last layer, then of the hidden one, all i.i.d. U[-1, 1]."""
    shapes = ((k,), (hidden, k), (hidden,), (inputs, hidden))
    keys = zip(jax.random.split(key, len(shapes)), shapes, strict=True)
    return [jax.random.uniform(key, shape, minval=-1, maxval=1) for key, shape in keys]


def apply(weights: list[jax.Array], views: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Logits [v, k] and representation [v, hidden] of flat views [v, inputs]."""
    head_bias, head, hidden_bias, hidden = weights
    representation = jax.nn.sigmoid(views @ hidden + hidden_bias[None])
    return representation @ head + head_bias[None], representation


@functools.partial(jax.jit, static_argnames=("hidden", "k"))
def squared_gradients(
    keys: jax.Array, views: jax.Array, labels: jax.Array, groups: jax.Array, hidden: int, k: int
) -> jax.Array:
    """||grad_{w_c} L||^2 of every group for every c: float32 [s, g, k], keys [s] initialise.

    ``views`` float [v, inputs], ``labels`` int [v], ``groups`` bool [g, v]. One initialisation at
    a time, so memory does not grow with their number.
    """

    def of_one(key):
        variables = initialise(key, views.shape[1], hidden, k)
        options = {"per_operation": True, "block": min(_BLOCK, len(views))}
        return priority.gradient_magnitude(apply, variables, views, labels, groups, **options) ** 2

    return jax.lax.map(of_one, keys)


@functools.partial(jax.jit, static_argnames="hidden")
def kernel_sums(views: jax.Array, groups: jax.Array, hidden: int) -> jax.Array:
    """Q = sum_ij (E[h_i . h_j] + 1) over the views of every group: float32 [g].

    A unit's inputs are nearly Gaussian, of covariance c_ij = (x_i . x_j + 1) / 3 over its weights.
    With the sigmoid as the distribution function of a normal of standard deviation 1.702,
    E[h_i h_j] = 1/4 + arcsin(c_ij / sqrt((c_ii + 1.702^2) (c_jj + 1.702^2))) / (2 pi).
    """
    covariance = (jnp.matmul(views, views.T, precision="highest") + 1) / 3
    scale = jnp.sqrt(jnp.diag(covariance) + 1.702**2)
    unit = 1 / 4 + jnp.arcsin(covariance / jnp.outer(scale, scale)) / (2 * jnp.pi)
    groups = groups.astype(jnp.float32)
    return jnp.einsum("gi,ij,gj->g", groups, hidden * unit + 1, groups)
