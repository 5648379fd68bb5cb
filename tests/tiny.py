"""Networks that compile in a second, for tests of what is around them."""

import flax.linen as nn


class Tiny(nn.Module):
    """One convolution and batch normalisation; it learns little."""

    num_outputs: int
    dtype: object = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        x = nn.Conv(8, (5, 5), strides=4, dtype=self.dtype)(x)
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=self.axis_name)
        representation = nn.relu(norm(x)).mean((1, 2))
        return nn.Dense(self.num_outputs, name="head")(representation), representation


class Plain(nn.Module):
    """A network of one's own: no running statistics, no particular names."""

    num_outputs: int
    dtype: object = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        x = nn.relu(nn.Conv(4, (3, 3))(x)).mean((1, 2))
        return nn.Dense(self.num_outputs)(x), x


class TinyAutoencoder(nn.Module):
    """One convolution down and one up, around a code of 8."""

    num_outputs: int
    dtype: object = None
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x, train):
        norm = nn.BatchNorm(use_running_average=not train, momentum=0.9, axis_name=self.axis_name)
        maps = nn.relu(norm(nn.Conv(4, (4, 4), strides=4)(x)))
        code = nn.tanh(nn.Dense(8)(maps.reshape(len(x), -1)))
        maps = nn.Dense(maps[0].size)(code).reshape(maps.shape)
        return nn.tanh(nn.ConvTranspose(x.shape[-1], (4, 4), strides=(4, 4))(maps)), code
