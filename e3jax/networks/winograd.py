"""Winograd's algorithm for 3 x 3 convolutions of stride 1 (Lavin & Gray 2016, arXiv:1509.09308)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from e3jax.networks.patches import Images, Kernel, every, in_groups, pad
from e3jax.shapes import Float, Float32

# The number of tiles in one matrix product: few enough for the cache.
_TILES = 256
# With fewer channels, splitting and joining the tiles costs more than the products save.
_CHANNELS = 16

# Winograd's F(4 x 4, 3 x 3) with the matrices of Lavin & Gray. In one dimension, a tile of 4
# outputs is JOIN @ ((FILTER @ kernel) * (SPLIT @ window)) for a window of 6 inputs: 6
# multiplications instead of 12, and in two dimensions 36 instead of 144. Neighbouring windows
# overlap by 2 pixels.
_TILE, _WINDOW = 4, 6
_SPLIT = np.array(
    [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
    np.float32,
)
_FILTER = np.array(
    [[6, 0, 0], [-4, -4, -4], [-4, 4, -4], [1, 2, 4], [1, -2, 4], [0, 0, 24]], np.float32
) / np.float32(24)
_JOIN = np.array(
    [[1, 1, 1, 1, 1, 0], [0, 1, -1, 2, -2, 0], [0, 1, 1, 4, 4, 0], [0, 1, -1, 8, -8, 1]],
    np.float32,
)


def winograd_fits(x: Images, kernel: Kernel, stride: int) -> bool:
    """Whether a convolution can be computed by the algorithm, and is faster that way."""
    return (
        (stride, kernel.shape[0]) == (1, 3)
        and x.shape[1] % _TILE == x.shape[2] % _TILE == 0
        and min(kernel.shape[2:]) >= _CHANNELS
    )


def winograd(x: Images, kernel: Float[jax.Array, "3 3 i o"]) -> Float[jax.Array, "b h w o"]:
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
        y = jnp.einsum("ptc,pco->pto", _by_tile(_SPLIT, pad(x, 1), rows, columns), filters)
        y = _combine(_JOIN, list(y.reshape(_WINDOW, _WINDOW, len(x), rows, columns * channels)))
        y = jnp.moveaxis(y, 0, 3).reshape(_WINDOW, len(x), height, columns, channels)
        y = _combine(_JOIN, list(y))
        return jnp.moveaxis(y, 0, 3).reshape(len(x), height, width, channels)

    (groups,) = in_groups(_TILES // (rows * columns), x)
    return jax.lax.map(convolve_group, groups).reshape(*x.shape[:3], channels)


def winograd_filter_gradient(
    x: Images, dy: Float[jax.Array, "b h w o"]
) -> Float[jax.Array, "3 3 i o"]:
    """The transpose of `winograd` with respect to its kernel, so with transposed matrices."""
    rows, columns = x.shape[1] // _TILE, x.shape[2] // _TILE

    def add_group(total, x_and_dy):
        x, dy = x_and_dy
        x = _by_tile(_SPLIT, pad(x, 1), rows, columns)
        dy = _by_tile(_JOIN.T, dy, rows, columns)
        return total + jnp.einsum("ptc,pto->pco", x, dy), None

    total = jnp.zeros((_WINDOW**2, x.shape[-1], dy.shape[-1]), x.dtype)
    total, _ = jax.lax.scan(add_group, total, in_groups(_TILES // (rows * columns), x, dy))
    total = _combine(_FILTER.T, list(total.reshape(_WINDOW, _WINDOW, *total.shape[1:])))
    return _combine(_FILTER.T, [total[:, j] for j in range(_WINDOW)]).swapaxes(0, 1)


def _by_tile(
    matrix: Float32[np.ndarray, "points window"], x: Images, rows: int, columns: int
) -> Float[jax.Array, "squared tiles i"]:
    """``matrix @ window @ matrix.T`` for the window of every tile.

    Args:
      matrix: along one direction.
      x: images whose tile (row, column) has its window's corner at pixel
        (4 * row, 4 * column).
      rows, columns: number of tiles in an image.

    Returns:
      Of points * points, and the tiles of all images.
    """
    points, window = matrix.shape
    t = _combine(matrix, [every(x, 2, j, _TILE, columns) for j in range(window)])
    t = t.reshape(points, *x.shape[:2], columns * x.shape[-1])
    t = _combine(matrix, [every(t, 2, i, _TILE, rows) for i in range(window)])
    return t.reshape(points**2, -1, x.shape[-1])


def _combine(
    matrix: Float32[np.ndarray, "sums terms"], parts: list[jax.Array]
) -> Float[jax.Array, "sums ..."]:
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
