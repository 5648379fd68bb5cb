"""Networks that compile in a second, for tests of what is around them."""

import flax.linen as nn

from e3jax.networks import NETWORKS, Network
from e3jax.networks.layers import batch_norm


class _Network(nn.Module):
    """What every network is given, see :func:`e3jax.networks.build`."""

    num_outputs: int
    dtype: object = None
    axis_name: str | None = None


class Tiny(_Network):
    """One convolution and batch normalisation; it learns little."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (5, 5), strides=4, use_bias=False, dtype=self.dtype)(x)
        norm = batch_norm(train, self.axis_name)()
        representation = nn.relu(norm(x)).mean((1, 2))
        return nn.Dense(self.num_outputs, name="head")(representation), representation


# A detector can be saved with a network's name alone.
NETWORKS["tiny"] = Network(
    "tiny-SIZE", (range(8, 9),), lambda num_outputs, size, *rest: Tiny(num_outputs, *rest)
)


class Plain(_Network):
    """A network of one's own: no running statistics, no particular names."""

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(4, (3, 3))(x)).mean((1, 2))
        return nn.Dense(self.num_outputs)(x), x


class TinyAutoencoder(_Network):
    """One convolution down and one up, around a code of 8."""

    @nn.compact
    def __call__(self, x, train):
        norm = batch_norm(train, self.axis_name)()
        maps = nn.relu(norm(nn.Conv(4, (4, 4), strides=4)(x)))
        code = nn.tanh(nn.Dense(8)(maps.reshape(len(x), -1)))
        maps = nn.Dense(maps[0].size)(code).reshape(maps.shape)
        return nn.tanh(nn.ConvTranspose(x.shape[-1], (4, 4), strides=(4, 4))(maps)), code


class TinyMixture(_Network):
    """DAGMM's outputs from two dense layers, with dropout in training."""

    @nn.compact
    def __call__(self, x, train):
        flat = x.reshape(len(x), -1)
        z = nn.Dense(2)(flat)
        reconstruction = nn.tanh(nn.Dense(flat.shape[1])(z)).reshape(x.shape)
        membership = nn.Dense(3)(nn.Dropout(0.5, deterministic=not train)(z))
        return reconstruction, z, nn.softmax(membership)


class Counted(_Network):
    """A small network that counts how often its training is traced."""

    traced = []

    @nn.compact
    def __call__(self, x, train):
        self.traced.append(train)
        representation = nn.relu(nn.Conv(4, (3, 3), strides=4)(x)).mean((1, 2))
        return nn.Dense(self.num_outputs)(representation), representation


# Parameters of a detector as small as can be trained: for its contract, not for its scores.
SMALL = {
    "network": Tiny,
    "operations": "PR",
    "steps": 3,
    "batch_size": 8,
    "image_size": 8,
    "random_state": 0,
}
