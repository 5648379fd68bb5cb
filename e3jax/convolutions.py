"""Square convolutions, with a way of their own to compute them on CPU.

XLA's convolutions on CPU are good forward, but their filter gradients, and every gradient of a
strided one, are many times slower, and slower again inside ``lax.scan``. Here they are matrix
products over the patches of a few images at a time, small enough to stay in cache; and 3 x 3
convolutions of stride 1, most of a residual network's work, need four times fewer multiplications
by Winograd's algorithm. Accelerators keep XLA's.

Shapes: images [b, h, w, c], kernel [k, k, i, o].
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

_DIMENSIONS = ("NHWC", "HWIO", "NHWC")
# Images whose patches are laid out at once, and tiles a matrix product: few, for the cache.
_PATCH_IMAGES = 4
_TILES = 256
_FEW_CHANNELS = 4
_WINOGRAD_CHANNELS = 16

# Winograd's F(4 x 4, 3 x 3) with the matrices of Lavin & Gray (2016): a tile of 4 outputs (in one
# dimension) is JOIN @ ((FILTER @ kernel) * (SPLIT @ window)) of a window of 6 inputs.
_TILE = 4
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
_POINTS, _WINDOW = _SPLIT.shape


def _native(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    if kernel.shape[0] == 1 and stride == 1:  # a matrix product is faster than a convolution
        return _pointwise(x, kernel, stride)
    # A strided one stays a convolution: XLA's Triton fusions abort the process where a product and
    # a convolution read the same array, the first every other pixel of it (openxla/xla#47381).
    return jax.lax.conv_general_dilated(
        x, kernel, (stride, stride), [(padding, padding)] * 2, dimension_numbers=_DIMENSIONS
    )


def _pointwise(x: jax.Array, kernel: jax.Array, stride: int) -> jax.Array:
    return jnp.einsum("bhwi,io->bhwo", x[:, ::stride, ::stride], kernel[0, 0])


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Square convolution, [b, h, w, i] and [k, k, i, o] -> [b, h', w', o].

    Where Winograd's algorithm is used, results differ from the plain sum by rounding, about 1e-5 of
    the largest entry in float32.
    """
    static = {"stride": stride, "padding": padding}
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=_in_float32(functools.partial(_forward_on_cpu, **static)),
        default=functools.partial(_native, **static),
    )


def _conv_forward(x, kernel, stride, padding):
    return conv(x, kernel, stride, padding), (x, kernel)


def _conv_backward(stride, padding, residuals, dy):
    def native(x, kernel, dy):
        return jax.vjp(lambda x, kernel: _native(x, kernel, stride, padding), x, kernel)[1](dy)

    on_cpu = functools.partial(_backward_on_cpu, stride=stride, padding=padding)
    return jax.lax.platform_dependent(*residuals, dy, cpu=_in_float32(on_cpu), default=native)


conv.defvjp(_conv_forward, _conv_backward)


def _native_transpose(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    low = kernel.shape[0] - 1 - padding
    return jax.lax.conv_transpose(
        x,
        kernel,
        (stride, stride),
        [(low, low + stride - 1)] * 2,
        dimension_numbers=_DIMENSIONS,
        transpose_kernel=True,
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv_transpose(x: jax.Array, kernel: jax.Array, stride: int, padding: int) -> jax.Array:
    """Transposed convolution, [b, h, w, i] and [k, k, o, i] -> [b, stride * h, stride * w, o].

    The adjoint of :func:`conv` with the same kernel, stride and padding; k = 2 * padding + 1.
    PyTorch's with that padding and ``output_padding = stride - 1``; for k = 3 and stride 2 its
    padding is (1, 2) in JAX's terms, where "SAME" would be (2, 1).
    """
    static = {"stride": stride, "padding": padding}
    return jax.lax.platform_dependent(
        x,
        kernel,
        cpu=_in_float32(functools.partial(_transpose_on_cpu, **static)),
        default=functools.partial(_native_transpose, **static),
    )


def _transpose_forward(x, kernel, stride, padding):
    return conv_transpose(x, kernel, stride, padding), (x, kernel)


def _transpose_backward(stride, padding, residuals, dy):
    def native(x, kernel, dy):
        transpose = functools.partial(_native_transpose, stride=stride, padding=padding)
        return jax.vjp(transpose, x, kernel)[1](dy)

    def on_cpu(x, kernel, dy):  # what is input and what output is swapped
        return _forward_on_cpu(dy, kernel, stride, padding), _filter_gradient(
            dy, kernel, x, stride, padding
        )

    return jax.lax.platform_dependent(*residuals, dy, cpu=_in_float32(on_cpu), default=native)


conv_transpose.defvjp(_transpose_forward, _transpose_backward)


def _in_float32(function):
    """Entries of bfloat16, sums of float32: as an accelerator; a CPU has no faster way."""

    def run(*arrays):
        dtype = arrays[0].dtype
        wide = (a.astype(jnp.promote_types(dtype, jnp.float32)) for a in arrays)
        return jax.tree.map(lambda a: a.astype(dtype), function(*wide))

    return run


def _forward_on_cpu(x, kernel, stride, padding):
    if _winograd_fits(x, kernel, stride, padding):
        return _winograd(x, kernel)
    if kernel.shape[2] <= _FEW_CHANNELS and kernel.shape[0] > 1:
        return _sum_of_shifts(x, kernel, stride, padding)
    if kernel.shape[0] == 1:
        return _pointwise(x, kernel, stride)
    return _native(x, kernel, stride, padding)


def _backward_on_cpu(x, kernel, dy, stride, padding):
    if _winograd_fits(x, kernel, stride, padding):
        turned = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
        return _winograd(dy, turned), _winograd_filter_gradient(x, dy)
    return _input_gradient(x.shape[1:3], kernel, dy, stride, padding), _filter_gradient(
        x, kernel, dy, stride, padding
    )


def _transpose_on_cpu(x, kernel, stride, padding):
    sides = [stride * side for side in x.shape[1:3]]
    return _input_gradient(sides, kernel, x, stride, padding)


def _sum_of_shifts(x, kernel, stride, padding):
    """For images of few channels, too thin for matrix products: one fused sum over the taps."""
    size = kernel.shape[0]
    height, width = ((side + 2 * padding - size) // stride + 1 for side in x.shape[1:3])
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))
    return sum(
        shifted[..., channel, None] * kernel[i, j, channel]
        for (i, j), shifted in _shifts(x, size, stride, height, width).items()
        for channel in range(x.shape[-1])
    )


def _shifts(x, size, stride, height, width) -> dict[tuple[int, int], jax.Array]:
    """What each tap of a kernel reads of padded images, [b, height, width, c] a tap."""
    return {
        (i, j): _every(_every(x, 1, i, stride, height), 2, j, stride, width)
        for i in range(size)
        for j in range(size)
    }


def _input_gradient(sides, kernel, dy, stride, padding):
    """The transposed convolution, pixels of each phase of the stride apart.

    As one convolution over dy with zeros between its pixels, most products would be by zero.
    """
    most = -(-kernel.shape[0] // stride)
    b, channels = len(dy), kernel.shape[2]
    rows, columns = (side + most - 1 for side in dy.shape[1:3])

    def phase(i, j):
        taps = jnp.flip(kernel[i::stride, j::stride], (0, 1)).swapaxes(2, 3)
        if 0 in taps.shape:
            return jnp.zeros((b, rows, columns, channels), dy.dtype)
        pad = [(side - 1, most - 1) for side in taps.shape[:2]]
        if taps.shape[:2] == (1, 1):
            return jnp.einsum("bhwo,oi->bhwi", jnp.pad(dy, [(0, 0), *pad, (0, 0)]), taps[0, 0])
        return jax.lax.conv_general_dilated(dy, taps, (1, 1), pad, dimension_numbers=_DIMENSIONS)

    dx = [jnp.stack([phase(i, j) for j in range(stride)], axis=3) for i in range(stride)]
    dx = jnp.stack(dx, axis=2).reshape(b, rows * stride, columns * stride, channels)
    # The last rows and columns of an image may be read by no tap.
    missing = [
        max(padding + side - have, 0) for side, have in zip(sides, dx.shape[1:3], strict=True)
    ]
    dx = jnp.pad(dx, [(0, 0), (0, missing[0]), (0, missing[1]), (0, 0)])
    return dx[:, padding : padding + sides[0], padding : padding + sides[1]]


def _filter_gradient(x, kernel, dy, stride, padding):
    """Sum over images of patches' @ dy, a few images at a time."""
    size, height, width = kernel.shape[0], *dy.shape[1:3]
    x = jnp.pad(x, ((0, 0), (padding, padding), (padding, padding), (0, 0)))

    def some_images(total, x_and_dy):
        x, dy = x_and_dy
        shifts = _shifts(x, size, stride, height, width)
        patches = jnp.concatenate(list(shifts.values()), axis=-1)
        return total + jnp.einsum("bhwp,bhwo->po", patches, dy), None

    total = jnp.zeros((kernel.size // kernel.shape[-1], kernel.shape[-1]), x.dtype)
    total, _ = jax.lax.scan(some_images, total, _in_groups(_PATCH_IMAGES, x, dy))
    return total.reshape(kernel.shape)


def _every(x: jax.Array, axis: int, start: int, step: int, count: int) -> jax.Array:
    return jax.lax.slice_in_dim(x, start, start + step * (count - 1) + 1, step, axis)


def _in_groups(most: int, *arrays: jax.Array) -> tuple[jax.Array, ...]:
    """[b, ...] -> [groups, images, ...] with at most so many images a group."""
    b = len(arrays[0])
    few = max(size for size in range(1, min(b, max(most, 1)) + 1) if b % size == 0)
    return tuple(a.reshape(-1, few, *a.shape[1:]) for a in arrays)


def _winograd_fits(x, kernel, stride, padding) -> bool:
    return (
        (stride, padding, kernel.shape[0]) == (1, 1, 3)
        and x.shape[1] % _TILE == 0
        and x.shape[2] % _TILE == 0
        and min(kernel.shape[2:]) >= _WINOGRAD_CHANNELS
    )


def _winograd(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """The 3 x 3 convolution, padded by 1."""
    _, height, width, _ = x.shape
    rows, columns = height // _TILE, width // _TILE
    filters = _combine(_FILTER, [kernel[:, j] for j in range(3)])
    filters = _combine(_FILTER, [filters[:, i] for i in range(3)])
    filters = filters.reshape(_POINTS**2, *kernel.shape[2:])

    def some_images(x):
        products = jnp.einsum("ptc,pco->pto", _split(x), filters)
        y = products.reshape(_POINTS, _POINTS, len(x), rows, columns * kernel.shape[-1])
        y = _combine(_JOIN, list(y))
        y = jnp.moveaxis(y, 0, 3).reshape(_POINTS, len(x), height, columns, kernel.shape[-1])
        y = _combine(_JOIN, list(y))
        return jnp.moveaxis(y, 0, 3).reshape(len(x), height, width, kernel.shape[-1])

    (groups,) = _in_groups(_TILES // (rows * columns), x)
    y = jax.lax.map(some_images, groups)
    return y.reshape(*x.shape[:3], kernel.shape[-1])


def _winograd_filter_gradient(x: jax.Array, dy: jax.Array) -> jax.Array:
    """The transpose of ``_winograd`` with respect to its filter."""
    rows, columns = x.shape[1] // _TILE, x.shape[2] // _TILE

    def some_images(total, x_and_dy):
        x, dy = x_and_dy
        t = _combine(_JOIN.T, [_every(dy, 2, i, _TILE, columns) for i in range(_TILE)])
        t = t.reshape(_POINTS, *dy.shape[:2], columns * dy.shape[-1])
        t = _combine(_JOIN.T, [_every(t, 2, i, _TILE, rows) for i in range(_TILE)])
        t = t.reshape(_POINTS**2, -1, dy.shape[-1])
        return total + jnp.einsum("ptc,pto->pco", _split(x), t), None

    total = jnp.zeros((_POINTS**2, x.shape[-1], dy.shape[-1]), x.dtype)
    total, _ = jax.lax.scan(some_images, total, _in_groups(_TILES // (rows * columns), x, dy))
    total = _combine(_FILTER.T, list(total.reshape(_POINTS, _POINTS, *total.shape[1:])))
    return _combine(_FILTER.T, [total[:, s] for s in range(_POINTS)]).swapaxes(0, 1)


def _split(x: jax.Array) -> jax.Array:
    """Images [b, h, w, c] -> SPLIT @ window @ SPLIT' of every tile, [36, tiles, c]."""
    b, height, width, c = x.shape
    rows, columns = height // _TILE, width // _TILE
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    t = _combine(_SPLIT, [_every(x, 2, i, _TILE, columns) for i in range(_WINDOW)])
    t = t.reshape(_POINTS, b, height + 2, columns * c)
    t = _combine(_SPLIT, [_every(t, 2, i, _TILE, rows) for i in range(_WINDOW)])
    return t.reshape(_POINTS**2, -1, c)


def _combine(matrix: np.ndarray, parts: list[jax.Array]) -> jax.Array:
    """The matrix times a column of arrays: multiples and sums, no product of matrices."""
    sums = []
    for row in matrix:
        terms = [
            part if factor == 1 else part * factor
            for factor, part in zip(row, parts, strict=True)
            if factor
        ]
        sums.append(functools.reduce(jnp.add, terms))
    # Kept apart from the next one, which would otherwise compute every sum anew where it reads it.
    return jax.lax.optimization_barrier(jnp.stack(sums))
