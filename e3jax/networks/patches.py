"""Convolutions and their gradients over patches, for any kernel and stride.

Shapes: images [b, h, w, channels], kernels [k, k, i, o] with odd k.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from e3jax.shapes import Float

DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Images with at most so many channels are too thin for matrix products.
FEW_CHANNELS = 4
# The number of images whose patches are laid out at once: few enough for the cache.
_PATCH_IMAGES = 4

Images = Float[jax.Array, "b h w i"]
Kernel = Float[jax.Array, "k k i o"]
Outputs = Float[jax.Array, "b rows columns o"]


def native_conv(
    x: Images, kernel: Float[jax.Array, "rows columns i o"], stride: int, padding: Sequence
) -> Float[jax.Array, "b h2 w2 o"]:
    """XLA's convolution, padded by ``padding`` pixels (before, after) in each direction."""
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=DIMENSIONS
    )


def pointwise(x: Images, kernel: Kernel, stride: int) -> Outputs:
    """A 1 x 1 convolution as the matrix product that it is."""
    return jnp.einsum("bhwi,io->bhwo", x[:, ::stride, ::stride], kernel[0, 0])


def sum_of_shifts(x: Images, kernel: Kernel, stride: int) -> Outputs:
    """A convolution of images with few channels: one fused sum over the taps of the kernel."""
    shifts = _shifts(pad(x, kernel.shape[0] // 2), kernel.shape[0], stride)
    terms = [
        shift[..., channel, None] * kernel[None, None, None, i, j, channel]
        for (i, j), shift in shifts.items()
        for channel in range(x.shape[-1])
    ]
    return sum(terms[1:], terms[0])


def _shifts(x: Images, size: int, stride: int) -> dict[tuple[int, int], jax.Array]:
    """What each tap (row, column) of a kernel reads of padded images: [b, h', w', c] each."""
    height, width = ((side - size) // stride + 1 for side in x.shape[1:3])
    return {
        (i, j): every(every(x, 1, i, stride, height), 2, j, stride, width)
        for i in range(size)
        for j in range(size)
    }


def filter_gradient(x: Images, kernel: Kernel, stride: int, dy: Outputs) -> Kernel:
    """The sum of ``patches.T @ dy`` over all images, a few of them at a time.

    The patches of all images would be k * k times as large as the images; laid out in groups, they
    are still in the cache when the product reads them.
    """
    size = kernel.shape[0]

    def add_group(total, x_and_dy):
        x, dy = x_and_dy
        patches = jnp.concatenate(list(_shifts(x, size, stride).values()), axis=-1)
        return total + jnp.einsum("bhwp,bhwo->po", patches, dy), None

    total = jnp.zeros((kernel.size // kernel.shape[-1], kernel.shape[-1]), x.dtype)
    groups = in_groups(_PATCH_IMAGES, pad(x, size // 2), dy)
    return jax.lax.scan(add_group, total, groups)[0].reshape(kernel.shape)


def input_gradient(sides: Sequence[int], kernel: Kernel, stride: int, dy: Outputs) -> Images:
    """The transposed convolution of ``dy``, to images with these sides.

    Written as one convolution, it would read ``dy`` with ``stride - 1`` zeros between its pixels,
    and most products would be by zero. But output pixels (r, c) with the same r % stride and
    c % stride, one *phase*, all use the same taps of the kernel: each phase is a dense convolution
    of ``dy`` with these taps, and the phases are then interleaved.
    """
    padding = kernel.shape[0] // 2
    most = -(-kernel.shape[0] // stride)  # taps of the phase that has most of them
    b, channels = len(dy), kernel.shape[2]
    rows, columns = (side + most - 1 for side in dy.shape[1:3])

    def phase(i, j):
        taps = jnp.flip(kernel[i::stride, j::stride], (0, 1)).swapaxes(2, 3)
        if 0 in taps.shape:  # The stride jumps over these pixels.
            return jnp.zeros((b, rows, columns, channels), dy.dtype)
        pad = [(side - 1, most - 1) for side in taps.shape[:2]]
        if taps.shape[:2] == (1, 1):
            return pointwise(jnp.pad(dy, [(0, 0), *pad, (0, 0)]), taps, 1)
        return native_conv(dy, taps, 1, pad)

    dx = [jnp.stack([phase(i, j) for j in range(stride)], axis=3) for i in range(stride)]
    dx = jnp.stack(dx, axis=2).reshape(b, rows * stride, columns * stride, channels)
    # Removes the padding; negative amounts crop. No tap may have read the last rows and columns.
    edges = [
        (-padding, padding + side - have, 0)
        for side, have in zip(sides, dx.shape[1:3], strict=True)
    ]
    return jax.lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def pad(x: Images, padding: int) -> Float[jax.Array, "b height width i"]:
    """Images with ``padding`` pixels of 0 on every side."""
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def every(x: jax.Array, axis: int, start: int, step: int, count: int) -> jax.Array:
    """``count`` entries along an axis, ``step`` apart."""
    return jax.lax.slice_in_dim(x, start, start + step * (count - 1) + 1, step, axis)


def in_groups(most: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """[b, ...] -> [groups, images, ...], with at most ``most`` images in each group.

    Groups have the same size, the largest that divides b.
    """
    b = len(arrays[0])
    images = max(size for size in range(1, min(b, max(most, 1)) + 1) if b % size == 0)
    return tuple(a.reshape(-1, images, *a.shape[1:]) for a in arrays)
