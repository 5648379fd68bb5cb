"""A network that compiles in a second, for tests of what is around it."""

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
