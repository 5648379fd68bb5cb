"""What the networks are made of."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp

from e3jax.convolutions import conv

# He normal, not truncated (jax.nn.initializers.he_normal is), as PyTorch's kaiming_normal_.
he_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def uniform_fan_in(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default for kernels [..., fan_out]."""
    bound = math.prod(shape[:-1]) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def forward_flops(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """FLOPs of a classifier's forward pass of one view [h, w, c].

    Two a multiplication by the kernels of convolutions and dense layers; all else is left out.
    Counted from shapes alone, since compilers do not tell on every device.
    """
    view = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    # The key inside: this takes no device.
    variables = jax.eval_shape(lambda x: network.init(jax.random.key(0), x, train=False), view)
    apply = functools.partial(network.apply, train=False, capture_intermediates=True)
    _, seen = jax.eval_shape(functools.partial(apply, mutable=["intermediates"]), variables, view)
    outputs = flax.traverse_util.flatten_dict(seen["intermediates"])
    return sum(
        2 * kernel.size * math.prod(outputs[*layer, "__call__"][0].shape[1:-1])
        for (*layer, name), kernel in flax.traverse_util.flatten_dict(variables["params"]).items()
        if name == "kernel"
    )


class Conv(nn.Module):
    """Convolution without bias, padded by ``size // 2`` on every side.

    That is PyTorch's padding; "SAME" would pad a strided one by (0, 1).
    """

    channels: int
    size: int = 3
    stride: int = 1
    init: Callable[..., jax.Array] = he_fan_in
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.channels)
        kernel = self.param("kernel", self.init, shape).astype(self.dtype)
        return conv(x.astype(self.dtype), kernel, self.stride, self.size // 2)


def batch_norm(
    train: bool, axis_name: str | None, dtype: Any = jnp.float32
) -> Callable[[], nn.Module]:
    """Makes BatchNorm layers as PyTorch's: running statistics move a tenth of the way a step."""
    return functools.partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        axis_name=axis_name,
    )
