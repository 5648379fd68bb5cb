"""Networks (Flax Linen); everything outside this file sees plain pytrees of variables."""

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from e3jax.convolutions import conv

# He normal, not truncated (jax.nn.initializers.he_normal is), as PyTorch's kaiming_normal_.
_he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def _uniform_fan_in(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for a dense kernel [fan_in, fan_out]."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


class Conv(nn.Module):
    """Convolution without bias, He normal (fan in), padded by ``size // 2`` on every side.

    That is PyTorch's padding; "SAME" would pad a strided one by (0, 1).
    """

    channels: int
    size: int = 3
    stride: int = 1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.channels)
        kernel = self.param("kernel", _he_normal, shape).astype(self.dtype)
        return conv(x.astype(self.dtype), kernel, self.stride, self.size // 2)


class WideResNet(nn.Module):
    """Wide residual network (Zagoruyko & Komodakis 2016) with pre-activation basic blocks.

    Applied as ``network.apply(variables, x, train=...)`` to float [b, h, w, c] in [-1, 1]; returns
    ``(logits float32 [b, num_outputs], representation float32 [b, 64 * width])``.

    Attributes:
      num_outputs: number of operations K.
      depth: 6 * (blocks a group) + 4.
      width: the widening factor; groups have 16, 32 and 64 times so many channels.
      dtype: of the convolutions; parameters, batch statistics and logits are float32 always.
      axis_name: mesh axis over which training batches are split, so that batch statistics are
        those of the whole batch; None where a batch is in one piece.
    """

    num_outputs: int
    depth: int = 10
    width: int = 4
    dtype: Any = jnp.float32
    axis_name: str | None = None

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, jax.Array]:
        norm = functools.partial(
            nn.BatchNorm,
            use_running_average=not train,
            momentum=0.9,
            epsilon=1e-5,
            dtype=self.dtype,
            axis_name=self.axis_name,
        )
        conv = functools.partial(Conv, dtype=self.dtype)
        x = conv(16)(x)
        for group, channels in enumerate((16 * self.width, 32 * self.width, 64 * self.width)):
            for block in range((self.depth - 4) // 6):
                stride = 2 if group > 0 and block == 0 else 1
                activated = nn.relu(norm()(x))
                shortcut = x
                if x.shape[-1] != channels:
                    shortcut = conv(channels, size=1, stride=stride)(activated)
                y = conv(channels, stride=stride)(activated)
                x = shortcut + conv(channels)(nn.relu(norm()(y)))
        x = nn.relu(norm()(x))
        representation = jnp.mean(x, axis=(1, 2), dtype=jnp.float32)
        head = nn.Dense(self.num_outputs, kernel_init=_uniform_fan_in, name="head")
        return head(representation), representation


def build(
    name: str, num_outputs: int, dtype: Any = jnp.float32, axis_name: str | None = None
) -> nn.Module:
    """A classifier by name.

    Args:
      name: "wrn-DEPTH-WIDTH", e.g. the paper's "wrn-10-4"; DEPTH is 6n + 4.
      num_outputs: number of operations K.
      dtype: compute dtype of the convolutions, float32 or bfloat16.
      axis_name: mesh axis that splits training batches, see :class:`WideResNet`.

    Raises:
      ValueError: for an unknown name.
    """
    match = re.fullmatch(r"wrn-(\d+)-(\d+)", name)
    if not match or int(match[1]) < 10 or (int(match[1]) - 4) % 6 or int(match[2]) < 1:
        raise ValueError(
            f"unknown network {name!r}: expected wrn-DEPTH-WIDTH with DEPTH 10, 16, 22 ..., "
            "for example wrn-10-4"
        )
    return WideResNet(
        num_outputs, depth=int(match[1]), width=int(match[2]), dtype=dtype, axis_name=axis_name
    )
