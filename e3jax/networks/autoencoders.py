"""Networks that reconstruct images, for the methods that E3Outlier is compared with.

``axis_name`` is the mesh axis over which training batches are split, as for classifiers.
"""

import functools
import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from e3jax.networks.convolutions import conv, conv_transpose
from e3jax.networks.layers import Array, batch_norm, uniform_fan_in
from e3jax.shapes import Float

_WIDTHS = (64, 128, 256)


class _Layer(nn.Module):
    """A layer with bias.

    Kernels and biases start as in PyTorch, U(-1/sqrt(fan_in), 1/sqrt(fan_in)), where the fan_in of
    a transposed convolution counts its outputs.

    Attributes:
      kind: "dense", "down" (3 x 3 convolution of stride 2) or "up" (its transpose).
      keras: start as in Keras instead: kernels Glorot uniform, biases 0.
    """

    features: int
    kind: str
    keras: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[-1]
        shape = {
            "dense": (inputs, self.features),
            "down": (3, 3, inputs, self.features),
            "up": (3, 3, self.features, inputs),
        }[self.kind]

        def init_bias(key: jax.Array, shape: tuple[int]) -> jax.Array:
            bound = 0.0 if self.keras else math.prod(kernel.shape[:-1]) ** -0.5
            return jax.random.uniform(key, shape, minval=-bound, maxval=bound)

        glorot = nn.initializers.glorot_uniform()
        kernel = self.param("kernel", glorot if self.keras else uniform_fan_in, shape)
        bias = self.param("bias", init_bias, (self.features,))
        if self.kind == "dense":
            return x @ kernel + bias[None]
        layer = conv if self.kind == "down" else conv_transpose
        return layer(x, kernel, 2) + bias[None, None, None]


class ConvAutoencoder(nn.Module):
    """The autoencoder of the paper's compared methods, as in the authors' PyTorch program.

    It is applied as ``network.apply(variables, x, train=...)`` to float [b, h, w, c] in [-1, 1],
    with h and w multiples of 8, and returns
    ``(reconstruction [b, h, w, c] in (-1, 1), code [b, latent] in (-1, 1))``.

    Attributes:
      latent: number of entries of the code.
    """

    latent: int = 256
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool
    ) -> tuple[Float[jax.Array, "b h w c"], Float[jax.Array, "b latent"]]:
        norm = batch_norm(train, self.axis_name)
        return _autoencode(x, self.latent, jnp.tanh, _Layer, norm)


def _autoencode(
    x: Float[Array, "b h w c"], latent: int, activation: Callable, layer: Callable, norm: Callable
) -> tuple[Float[jax.Array, "b h w c"], Float[jax.Array, "b latent"]]:
    """Reconstruction and code of images; called inside a network."""
    if x.shape[1] % 8 or x.shape[2] % 8:
        raise ValueError(f"image sides must be multiples of 8, got {x.shape[1:3]}: pad the images")
    x, channels = jnp.asarray(x), x.shape[-1]
    for width in _WIDTHS:
        x = nn.relu(norm()(layer(width, "down")(x)))
    maps, x = x.shape, x.reshape(len(x), -1)
    code = activation(layer(latent, "dense")(x))
    x = nn.relu(norm()(layer(x.shape[-1], "dense")(code))).reshape(maps)
    for width in _WIDTHS[-2::-1]:
        x = nn.relu(norm()(layer(width, "up")(x)))
    return jnp.tanh(layer(channels, "up")(x)), code


class MixtureAutoencoder(nn.Module):
    """DAGMM's network (Zong et al. 2018, Sec. 3) with the sizes of the authors' Keras program.

    It is applied as :class:`ConvAutoencoder`, in training with ``rngs={"dropout": key}``, and
    returns ``(reconstruction [b, h, w, c], z [b, latent + 2], membership [b, components])``. ``z``
    is the linear code, then the reconstruction's relative Euclidean error (>= 0) and its cosine
    similarity with the image (in [-1, 1]); memberships are positive and sum to 1.

    Attributes:
      latent: number of entries of the code.
      components: number of Gaussians in the mixture.
    """

    latent: int = 5
    components: int = 3
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool
    ) -> tuple[
        Float[jax.Array, "b h w c"], Float[jax.Array, "b d"], Float[jax.Array, "b components"]
    ]:
        layer = functools.partial(_Layer, keras=True)
        norm = functools.partial(batch_norm(train, self.axis_name), momentum=0.99, epsilon=1e-3)
        # Keras' "same" padding is (0, 1) where ours is (1, 0), so the network sees the image turned
        # by 180 degrees.
        turned, code = _autoencode(x[:, ::-1, ::-1], self.latent, lambda x: x, layer, norm)
        reconstruction = turned[:, ::-1, ::-1]
        z = jnp.column_stack([code, *_compare(x, reconstruction)])
        hidden = z
        for width in (64, 10):
            hidden = jnp.tanh(layer(width, "dense")(hidden))
            hidden = nn.Dropout(0.5, deterministic=not train)(hidden)
        return reconstruction, z, nn.softmax(layer(self.components, "dense")(hidden))


def _compare(
    x: Float[Array, "b h w c"], reconstruction: Float[jax.Array, "b h w c"]
) -> tuple[Float[jax.Array, " b"], Float[jax.Array, " b"]]:
    """Relative Euclidean error and cosine similarity of each image."""
    a, b = (jnp.reshape(v, (len(v), -1)) for v in (x, reconstruction))
    tiny = 1e-12  # keeps the derivative of the root finite at 0
    norm_a, norm_b, error = (jnp.sqrt((v * v).sum(1) + tiny) for v in (a, b, a - b))
    return error / norm_a, (a * b).sum(1) / (norm_a * norm_b)
