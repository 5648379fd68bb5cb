"""Square convolutions that are as fast on a CPU as a CPU can be.

On CPUs, XLA computes convolutions well forward. But its filter gradients, and all gradients of
strided convolutions, are many times slower than the same sums written as matrix products, and they
are slower again inside ``lax.scan``, where training happens. So on CPUs

- 3 x 3 convolutions of stride 1, most of the work of a residual network, use Winograd's algorithm
  (Lavin & Gray 2016, arXiv:1509.09308), which needs a quarter of the multiplications;
- all other filter gradients are matrix products over patches ("im2col", Chellapilla et al. 2006),
  laid out for a few images at a time so that the patches stay in the cache;
- gradients of strided inputs, and transposed convolutions, are computed phase by phase as dense
  convolutions (Shi et al. 2016, arXiv:1609.07009).

Accelerators keep XLA's convolutions. Which of the two is compiled is decided per platform
(``lax.platform_dependent``), so a program can be exported from a CPU to a TPU.

Shapes: images [b, h, w, channels]; kernels [k, k, i, o] with odd k, padded by k // 2 on every side,
which is PyTorch's usual padding. ("SAME" would pad a 3 x 3 convolution of stride 2 by (0, 1).)
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# The number of images whose patches are laid out at once, and of tiles in one matrix product: few
# enough for the cache.
_PATCH_IMAGES = 4
_TILES = 256
# Images with at most so many channels are too thin for matrix products.
_FEW_CHANNELS = 4
# With fewer channels, splitting and joining Winograd's tiles costs more than its products save.
_WINOGRAD_CHANNELS = 16

# Winograd's F(4 x 4, 3 x 3) with the matrices of Lavin & Gray. In one dimension, a tile of 4
# outputs is JOIN @ ((FILTER @ kernel) * (SPLIT @ window)) for a window of 6 inputs: 6
# multiplications instead of 12, and in two dimensions 36 instead of 144. Neighbouring windows
# overlap by 2 pixels.
_TILE, _WINDOW = 4, 6
_SPLIT = np.float32(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ]
)
_FILTER = np.float32([[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]]) / 24
_JOIN = np.float32(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]]
)


def _with_cpu_version(forward: Callable, backward: Callable) -> Callable:
    """Decorates a convolution ``(x, kernel, stride) -> y`` with a version of its own for CPUs.

    Args:
      forward: ``(x, kernel, stride) -> y``, the convolution on CPUs.
      backward: ``(x, kernel, stride, dy) -> (dx, dkernel)``, its gradients on CPUs.
        JAX could derive them from ``forward``, but these would be XLA's slow ones again.

    Returns:
      A decorator. Other platforms get the decorated function and XLA's gradients of it.
    """

    def decorate(native):
        @functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
        @functools.wraps(native)
        def convolution(x, kernel, stride):
            return jax.lax.platform_dependent(
                x,
                kernel,
                cpu=_in_float32(lambda x, kernel: forward(x, kernel, stride)),
                default=lambda x, kernel: native(x, kernel, stride),
            )

        def gradients(stride, arrays, dy):
            def native_gradients(x, kernel, dy):
                return jax.vjp(lambda x, kernel: native(x, kernel, stride), x, kernel)[1](dy)

            return jax.lax.platform_dependent(
                *arrays,
                dy,
                cpu=_in_float32(lambda x, kernel, dy: backward(x, kernel, stride, dy)),
                default=native_gradients,
            )

        convolution.defvjp(
            lambda x, kernel, stride: (convolution(x, kernel, stride), (x, kernel)), gradients
        )
        return convolution

    return decorate


def _in_float32(function: Callable) -> Callable:
    """Computes in float32 and rounds only the results to the arguments' dtype.

    Accelerators also multiply entries of bfloat16 and sum in float32; a CPU gains nothing from
    bfloat16.
    """

    def run(*arrays):
        dtype = arrays[0].dtype
        wide = (a.astype(jnp.promote_types(dtype, jnp.float32)) for a in arrays)
        return jax.tree.map(lambda a: a.astype(dtype), function(*wide))

    return run


# --- The two convolutions ----------------------------------------------------------------------


def _forward(x, kernel, stride):
    if kernel.shape[0] == 1:
        return _pointwise(x, kernel, stride)
    if _winograd_fits(x, kernel, stride):
        return _winograd(x, kernel)
    if x.shape[-1] <= _FEW_CHANNELS:
        return _sum_of_shifts(x, kernel, stride)
    return _native(x, kernel, stride, [(kernel.shape[0] // 2,) * 2] * 2)


def _backward(x, kernel, stride, dy):
    if _winograd_fits(x, kernel, stride):
        # The input's gradient is a convolution too: with the kernel turned by 180 degrees, from
        # output to input channels.
        turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        return _winograd(dy, turned), _winograd_filter_gradient(x, dy)
    dx = _input_gradient(x.shape[1:3], kernel, stride, dy)
    return dx, _filter_gradient(x, kernel, stride, dy)


@_with_cpu_version(_forward, _backward)
def conv(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Square convolution, padded by k // 2 on every side.

    Where Winograd's algorithm is used, results differ from the plain sum by rounding: about 1e-5 of
    the largest entry in float32.

    Args:
      x: float [b, h, w, i].
      kernel: [k, k, i, o] of the same dtype, k odd.
      stride: step in pixels, in both directions.

    Returns:
      [b, ceil(h / stride), ceil(w / stride), o], of the same dtype.
    """
    if kernel.shape[0] == 1 and stride == 1:  # A matrix product is faster than a convolution.
        return _pointwise(x, kernel, stride)
    # A strided one stays a convolution: XLA's Triton fusions abort the process where a product and
    # a convolution read the same array and the product reads only every other pixel of it
    # (openxla/xla#47381).
    return _native(x, kernel, stride, [(kernel.shape[0] // 2,) * 2] * 2)


def _forward_transpose(x, kernel, stride):
    return _input_gradient([stride * side for side in x.shape[1:3]], kernel, stride, x)


def _backward_transpose(x, kernel, stride, dy):
    # The adjoint of the adjoint is the convolution itself; for the filter's gradient, input and
    # output change places.
    return _forward(dy, kernel, stride), _filter_gradient(dy, kernel, stride, x)


@_with_cpu_version(_forward_transpose, _backward_transpose)
def conv_transpose(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    """Transposed convolution: the adjoint of :func:`conv` with the same kernel and stride.

    It is PyTorch's with ``padding = k // 2`` and ``output_padding = stride - 1``. For k = 3 and
    stride 2 that is a padding of (1, 2) in JAX's terms, where "SAME" would be (2, 1).

    Args:
      x: float [b, h, w, i].
      kernel: [k, k, o, i] of the same dtype, k odd.
      stride: factor by which the sides grow.

    Returns:
      [b, stride * h, stride * w, o], of the same dtype.
    """
    half = kernel.shape[0] // 2
    return jax.lax.conv_transpose(
        x,
        kernel,
        (stride, stride),
        [(half, half + stride - 1)] * 2,
        dimension_numbers=_DIMENSIONS,
        transpose_kernel=True,
    )


def _native(x, kernel, stride, padding):
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), padding, dimension_numbers=_DIMENSIONS
    )


def _pointwise(x, kernel, stride):
    """A 1 x 1 convolution as the matrix product that it is."""
    return jnp.einsum("bhwi,io->bhwo", x[:, ::stride, ::stride], kernel[0, 0])


# --- Patches: any kernel and stride --------------------------------------------------------------


def _sum_of_shifts(x, kernel, stride):
    """A convolution of images with few channels: one fused sum over the taps of the kernel."""
    shifts = _shifts(_pad(x, kernel.shape[0] // 2), kernel.shape[0], stride)
    return sum(
        shift[..., channel, None] * kernel[None, None, None, i, j, channel]
        for (i, j), shift in shifts.items()
        for channel in range(x.shape[-1])
    )


def _shifts(x, size, stride) -> dict[tuple[int, int], jax.Array]:
    """What each tap (row, column) of a kernel reads of padded images: [b, h', w', c] each."""
    height, width = ((side - size) // stride + 1 for side in x.shape[1:3])
    return {
        (i, j): _every(_every(x, 1, i, stride, height), 2, j, stride, width)
        for i in range(size)
        for j in range(size)
    }


def _filter_gradient(x, kernel, stride, dy):
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
    groups = _in_groups(_PATCH_IMAGES, _pad(x, size // 2), dy)
    return jax.lax.scan(add_group, total, groups)[0].reshape(kernel.shape)


def _input_gradient(sides, kernel, stride, dy):
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
            return _pointwise(jnp.pad(dy, [(0, 0), *pad, (0, 0)]), taps, 1)
        return _native(dy, taps, 1, pad)

    dx = [jnp.stack([phase(i, j) for j in range(stride)], axis=3) for i in range(stride)]
    dx = jnp.stack(dx, axis=2).reshape(b, rows * stride, columns * stride, channels)
    # Removes the padding; negative amounts crop. No tap may have read the last rows and columns.
    edges = [
        (-padding, padding + side - have, 0)
        for side, have in zip(sides, dx.shape[1:3], strict=True)
    ]
    return jax.lax.pad(dx, jnp.zeros((), dx.dtype), [(0, 0, 0), *edges, (0, 0, 0)])


def _pad(x, padding):
    return jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))


def _every(x, axis, start, step, count):
    """``count`` entries along an axis, ``step`` apart."""
    return jax.lax.slice_in_dim(x, start, start + step * (count - 1) + 1, step, axis)


def _in_groups(most: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """[b, ...] -> [groups, images, ...], with at most ``most`` images in each group.

    Groups have the same size, the largest that divides b.
    """
    b = len(arrays[0])
    images = max(size for size in range(1, min(b, max(most, 1)) + 1) if b % size == 0)
    return tuple(a.reshape(-1, images, *a.shape[1:]) for a in arrays)


# --- Winograd's algorithm: 3 x 3, stride 1 -------------------------------------------------------


def _winograd_fits(x, kernel, stride) -> bool:
    return (
        (stride, kernel.shape[0]) == (1, 3)
        and x.shape[1] % _TILE == x.shape[2] % _TILE == 0
        and min(kernel.shape[2:]) >= _WINOGRAD_CHANNELS
    )


def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The 3 x 3 convolution of stride 1.

    Multiplications at each of the 6 x 6 points of a window are independent of the other points and
    sum over channels: 36 products [tiles, i] @ [i, o].
    """
    _, height, width, _ = x.shape
    rows, columns, channels = height // _TILE, width // _TILE, kernel.shape[-1]
    filters = _combine(_FILTER, [kernel[:, j] for j in range(3)])
    filters = _combine(_FILTER, [filters[:, i] for i in range(3)])
    filters = filters.reshape(_WINDOW**2, *kernel.shape[2:])

    def convolve_group(x):
        y = jnp.einsum("ptc,pco->pto", _by_tile(_SPLIT, _pad(x, 1), rows, columns), filters)
        y = _combine(_JOIN, list(y.reshape(_WINDOW, _WINDOW, len(x), rows, columns * channels)))
        y = jnp.moveaxis(y, 0, 3).reshape(_WINDOW, len(x), height, columns, channels)
        y = _combine(_JOIN, list(y))
        return jnp.moveaxis(y, 0, 3).reshape(len(x), height, width, channels)

    (groups,) = _in_groups(_TILES // (rows * columns), x)
    return jax.lax.map(convolve_group, groups).reshape(*x.shape[:3], channels)


def _winograd_filter_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The transpose of ``_winograd`` with respect to its kernel, so with transposed matrices."""
    rows, columns = x.shape[1] // _TILE, x.shape[2] // _TILE

    def add_group(total, x_and_dy):
        x, dy = x_and_dy
        x = _by_tile(_SPLIT, _pad(x, 1), rows, columns)
        dy = _by_tile(_JOIN.T, dy, rows, columns)
        return total + jnp.einsum("ptc,pto->pco", x, dy), None

    total = jnp.zeros((_WINDOW**2, x.shape[-1], dy.shape[-1]), x.dtype)
    total, _ = jax.lax.scan(add_group, total, _in_groups(_TILES // (rows * columns), x, dy))
    total = _combine(_FILTER.T, list(total.reshape(_WINDOW, _WINDOW, *total.shape[1:])))
    return _combine(_FILTER.T, [total[:, j] for j in range(_WINDOW)]).swapaxes(0, 1)


def _by_tile(matrix: np.ndarray, x: jax.Array, rows: int, columns: int) -> jax.Array:
    """``matrix @ window @ matrix.T`` for the window of every tile.

    Args:
      matrix: [points, window].
      x: [b, h, w, c], images whose tile (row, column) has its window's corner at pixel
        (4 * row, 4 * column).
      rows, columns: number of tiles in an image.

    Returns:
      [points * points, tiles of all images, c].
    """
    points, window = matrix.shape
    t = _combine(matrix, [_every(x, 2, j, _TILE, columns) for j in range(window)])
    t = t.reshape(points, *x.shape[:2], columns * x.shape[-1])
    t = _combine(matrix, [_every(t, 2, i, _TILE, rows) for i in range(window)])
    return t.reshape(points**2, -1, x.shape[-1])


def _combine(matrix: np.ndarray, parts: list[jax.Array]) -> jax.Array:
    """The matrix times a column of arrays, stacked.

    It is written out as sums of multiples, because many entries are 0 or 1; a matrix product with
    so small a matrix would be slower.
    """
    sums = []
    for row in matrix:
        terms = [
            part if factor == 1 else part * factor
            for factor, part in zip(row, parts, strict=True)
            if factor
        ]
        sums.append(functools.reduce(jnp.add, terms))
    # Without the barrier XLA would fuse a sum into the next one and compute it again for each entry
    # that reads it.
    return jax.lax.optimization_barrier(jnp.stack(sums))
