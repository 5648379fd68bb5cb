"""Networks (Flax Linen); everything outside this file sees plain pytrees of variables."""

import functools
import re
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

# He normal, not truncated (jax.nn.initializers.he_normal is), as PyTorch's kaiming_normal_.
_he_normal = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


def _uniform_fan_in(key: jax.Array, shape: tuple[int, ...], dtype: Any = jnp.float32) -> jax.Array:
    """U(-1/sqrt(fan_in), 1/sqrt(fan_in)) for a dense kernel [fan_in, fan_out]."""
    bound = shape[0] ** -0.5
    return jax.random.uniform(key, shape, dtype, -bound, bound)


_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Images whose patches the CPU's filter gradient lays out at once: few, so that they stay in cache.
_PATCH_IMAGES = 4


def _native_conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=_DIMENSIONS
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Square convolution, [b, h, w, i] and [k, k, i, o] -> [b, h', w', o].

    On CPU it has its own gradient: XLA computes filter gradients, and every gradient of a strided
    convolution, many times slower than forward convolutions there, and slower again inside
    ``lax.scan``. Matrix products over patches of a few images and plain forward convolutions give
    the same numbers.
    """
    return _native_conv(x, kernel, stride, padding)


def _conv_forward(x, kernel, stride, padding):
    return _native_conv(x, kernel, stride, padding), (x, kernel)


def _conv_backward(stride, padding, residuals, dy):
    def native(x, kernel, dy):
        return jax.vjp(lambda x, kernel: _native_conv(x, kernel, stride, padding), x, kernel)[1](dy)

    def by_products(x, kernel, dy):
        return _input_gradient(x, kernel, dy, stride, padding), _filter_gradient(
            x, kernel, dy, stride, padding
        )

    return jax.lax.platform_dependent(*residuals, dy, cpu=by_products, default=native)


conv.defvjp(_conv_forward, _conv_backward)


def _input_gradient(x, kernel, dy, stride, padding):
    """The transposed convolution as a forward one over dy with zeros between its pixels."""
    low = kernel.shape[0] - 1 - padding
    spread = [(0, 0, 0)]
    for size, out in zip(x.shape[1:3], dy.shape[1:3], strict=True):
        spread.append((low, size + padding - 1 - stride * (out - 1), stride - 1))
    dy = jax.lax.pad(dy, jnp.zeros((), dy.dtype), [*spread, (0, 0, 0)])
    return _native_conv(dy, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), 1, 0)


def _filter_gradient(x, kernel, dy, stride, padding):
    """Sum over images of patches' @ dy, a few images at a time."""
    size, height, width = kernel.shape[0], *dy.shape[1:3]
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def some_images(total, x_and_dy):
        x, dy = x_and_dy
        shifted = [
            x[
                :,
                i : i + stride * (height - 1) + 1 : stride,
                j : j + stride * (width - 1) + 1 : stride,
            ]
            for i in range(size)
            for j in range(size)
        ]
        patches = jnp.concatenate(shifted, axis=-1)
        return total + jnp.einsum(
            "bhwp,bhwo->po", patches, dy, preferred_element_type=total.dtype
        ), None

    few = _PATCH_IMAGES if x.shape[0] % _PATCH_IMAGES == 0 else 1
    groups = [a.reshape(-1, few, *a.shape[1:]) for a in (x, dy)]
    total = jnp.zeros((kernel.size // kernel.shape[-1], kernel.shape[-1]), jnp.float32)
    total, _ = jax.lax.scan(some_images, total, tuple(groups))
    return total.reshape(kernel.shape).astype(kernel.dtype)


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
        x = x.astype(self.dtype)
        if self.size == 1:  # a matrix product is faster than a convolution everywhere
            return jnp.einsum("bhwi,io->bhwo", x[:, :: self.stride, :: self.stride], kernel[0, 0])
        return conv(x, kernel, self.stride, self.size // 2)


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
