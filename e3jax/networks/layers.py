"""The layers and initialisers that networks are made of."""

import functools
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import flax.traverse_util
import jax
import jax.numpy as jnp
import numpy as np

from e3jax.networks.convolutions import conv
from e3jax.shapes import Float

Array = jax.Array | np.ndarray

# He normal as PyTorch's kaiming_normal_: not truncated, as jax.nn.initializers.he_normal is.
he_fan_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")
he_fan_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")


def uniform_fan_in(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """Draws U(-1/sqrt(fan_in), 1/sqrt(fan_in)), PyTorch's default, for kernels [..., fan_out]."""
    bound = math.prod(shape[:-1]) ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


def forward_flops(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Counts the FLOPs of a classifier's forward pass.

    They are two per multiplication by the kernels of convolutions and dense layers; everything else
    is left out. They are counted from shapes, because not every compiler reports them.

    Args:
      network: a classifier, see :func:`e3jax.networks.build`.
      shape: [h, w, c] of one view.

    Returns:
      FLOPs per view.
    """
    view = jax.ShapeDtypeStruct((1, *shape), jnp.float32)
    # The key is made inside, so that no device is needed.
    key = functools.partial(jax.random.key, 0, impl="threefry2x32")
    apply = functools.partial(network.apply, train=False, capture_intermediates=True)
    apply = functools.partial(apply, mutable=["intermediates"])
    with jax.numpy_dtype_promotion("standard"):  # as Flax's layers are written
        variables = jax.eval_shape(lambda x: network.init(key(), x, train=False), view)
        _, seen = jax.eval_shape(apply, variables, view)
    outputs: dict[tuple, Any] = flax.traverse_util.flatten_dict(seen["intermediates"])
    params: dict[tuple, Any] = flax.traverse_util.flatten_dict(variables["params"])
    return sum(
        2 * kernel.size * math.prod(outputs[*layer, "__call__"][0].shape[1:-1])
        for (*layer, name), kernel in params.items()
        if name == "kernel"
    )


class Conv(nn.Module):
    """Convolution without bias, padded by ``size // 2`` on every side as in PyTorch."""

    channels: int
    size: int = 3
    stride: int = 1
    init: Callable[..., jax.Array] = he_fan_in
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Float[Array, "b h w i"]) -> Float[jax.Array, "b rows columns o"]:
        shape = (self.size, self.size, x.shape[-1], self.channels)
        kernel = self.param("kernel", self.init, shape).astype(self.dtype)
        return conv(jnp.asarray(x, self.dtype), kernel, self.stride)


def batch_norm(
    train: bool, axis_name: str | None, dtype: Any = jnp.float32
) -> Callable[..., nn.Module]:
    """A constructor of BatchNorm layers as PyTorch's.

    In each training step the running statistics move a tenth of the way to the batch's, which are
    those of the whole batch over the devices of ``axis_name``.
    """
    return functools.partial(
        nn.BatchNorm,
        use_running_average=not train,
        momentum=0.9,
        epsilon=1e-5,
        dtype=dtype,
        axis_name=axis_name,
    )
