"""Classifiers that predict the operation that made a view.

They are applied as ``network.apply(variables, x, train=...)`` to float [b, h, w, c] in [-1, 1] and
return ``(logits float32 [b, num_outputs], representation float32 [b, d])``, where the
representation is the mean of the last feature maps. All have these attributes:

  num_outputs: number of operations K.
  depth: number of layers, as counted in the name of the network.
  dtype: dtype of the convolutions; parameters, batch statistics and logits are always float32.
  axis_name: mesh axis over which training batches are split, so that batch statistics are those of
    the whole batch; None if each batch is in one piece.
"""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from e3jax.networks.layers import Array, Conv, batch_norm, he_fan_out, uniform_fan_in
from e3jax.shapes import Float, Float32


class WideResNet(nn.Module):
    """Wide residual network (Zagoruyko & Komodakis 2016) with pre-activation basic blocks.

    Its representation has 64 * width entries.

    Attributes:
      depth: 6 * (blocks per group) + 4.
      width: the widening factor; groups have 16, 32 and 64 times as many channels.
      stem: size and stride of the first convolution.
    """

    num_outputs: int
    depth: int = 10
    width: int = 4
    dtype: Any = jnp.float32
    axis_name: str | None = None
    stem: tuple[int, int] = (3, 1)

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool
    ) -> tuple[Float[jax.Array, "b outputs"], Float[jax.Array, "b d"]]:
        norm = batch_norm(train, self.axis_name, self.dtype)
        conv = functools.partial(Conv, dtype=self.dtype)
        size, stride = self.stem
        x = conv(16, size=size, stride=stride)(x)
        for group, channels in enumerate((16 * self.width, 32 * self.width, 64 * self.width)):
            for block in range((self.depth - 4) // 6):
                stride = 2 if group > 0 and block == 0 else 1
                activated = nn.relu(norm()(x))
                shortcut = x
                if x.shape[-1] != channels:
                    shortcut = conv(channels, size=1, stride=stride)(activated)
                y = conv(channels, stride=stride)(activated)
                x = shortcut + conv(channels)(nn.relu(norm()(y)))
        return _classify(nn.relu(norm()(x)), self.num_outputs)


class ResNet(nn.Module):
    """Residual network for small images (He et al. 2016, Sec. 4.2) with basic blocks.

    Groups have 16, 32 and 64 channels; where these change, the shortcut is a 1 x 1 convolution with
    BatchNorm. As in the authors' program, kernels start He normal by fan out. Its representation
    has 64 entries.

    Attributes:
      depth: 6 * (blocks per group) + 2.
    """

    num_outputs: int
    depth: int = 20
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool
    ) -> tuple[Float[jax.Array, "b outputs"], Float[jax.Array, "b d"]]:
        norm = batch_norm(train, self.axis_name, self.dtype)
        conv = functools.partial(Conv, init=he_fan_out, dtype=self.dtype)
        x = nn.relu(norm()(conv(16)(x)))
        for channels in (16, 32, 64):
            for _ in range((self.depth - 2) // 6):
                changes = x.shape[-1] != channels
                stride = 2 if changes else 1
                y = nn.relu(norm()(conv(channels, stride=stride)(x)))
                y = norm()(conv(channels)(y))
                if changes:
                    # The two branches must not average over the devices at the same time, see
                    # devices.mean_over_devices: the barrier puts one after the other.
                    x, y = jax.lax.optimization_barrier((x, y))
                    x = norm()(conv(channels, size=1, stride=stride)(x))
                x = nn.relu(x + y)
        return _classify(x, self.num_outputs)


class DenseNet(nn.Module):
    """Densely connected network (Huang et al. 2017, DenseNet-BC) with growth rate k = 12.

    It has 24 channels at the start and three blocks of bottleneck layers; channels and sides are
    halved between blocks. As in the authors' program, kernels start He normal by fan out. At depth
    40 its representation has 132 entries.

    Attributes:
      depth: 6 * (layers per block) + 4.
    """

    num_outputs: int
    depth: int = 40
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(
        self, x: Float[Array, "b h w c"], train: bool
    ) -> tuple[Float[jax.Array, "b outputs"], Float[jax.Array, "b d"]]:
        growth = 12
        norm = batch_norm(train, self.axis_name, self.dtype)
        conv = functools.partial(Conv, init=he_fan_out, dtype=self.dtype)
        x = conv(2 * growth)(x)
        for block in range(3):
            if block > 0:
                x = conv(x.shape[-1] // 2, size=1)(nn.relu(norm()(x)))
                x = nn.avg_pool(x, (2, 2), (2, 2))
            for _ in range((self.depth - 4) // 6):
                y = conv(4 * growth, size=1)(nn.relu(norm()(x)))
                y = conv(growth)(nn.relu(norm()(y)))
                x = jnp.concatenate([x, y], axis=-1)
        return _classify(nn.relu(norm()(x)), self.num_outputs)


def _classify(
    x: Float[jax.Array, "b h w c"], num_outputs: int
) -> tuple[Float32[jax.Array, "b outputs"], Float32[jax.Array, "b c"]]:
    """Logits and representation of feature maps; called inside a network."""
    representation = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
    head = nn.Dense(num_outputs, kernel_init=uniform_fan_in, name="head")
    return head(representation), representation
