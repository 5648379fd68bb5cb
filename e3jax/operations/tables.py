"""The K operations of surrogate supervision, as data.

An operation turns one image into one *view*; its position in the set is the view's pseudo label.
Operations differ by their tables, not by their code: each one is a gather of pixels (flip, shift,
quarter turns, patch permutation) followed by a rotation, and "no rotation" is one row of the
rotation tables. So nothing branches, and under ``vmap`` a batch that mixes operations costs as much
as a batch of a single one. TPUs pad gathers of three channels to 128, so there the same views are
computed as matrix products.

To add a family, register one :class:`Family` in ``FAMILIES``; its operations may combine whatever
:class:`Operation` can express.

Shapes: ``n`` images, ``k`` operations, ``a`` rotations, ``p = side * side`` pixels,
``h = w = side``, ``c`` channels.
Images are in [-1, 1]; rotated views exceed that range by spline overshoot (about -1.4 to 1.4).
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import numpy as np
import scipy.ndimage
import scipy.special

from e3jax.operations.families import (
    FAMILIES,
    Operation,
    paper_operations,
)

FILLS = ("grey", "border", "mirror")
# A cubic spline reads a window of 4 x 4 coefficients around a point; at the border up to two of
# them in each direction lie outside the image and are mirrored.
_TAPS = 4
_PAD = 2
_GOLDEN = (5**0.5 - 1) / 2


_static = functools.partial(dataclasses.field, metadata={"static": True})


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class OperationSet:
    """K operations compiled for one image side; a pytree, so it passes through jit as an argument.

    Attributes:
      names, families: K strings each.
      side: the image side in pixels that the tables are for.
      rotation_rows: K numbers, the same as ``rotation`` but known when a program is traced.
      factors: int32 [f, k], each operation's value of each field of :class:`Operation` (row and
        column of the shift are two), as numbers from 0.
      gather: int32 [k, p], for every pixel of the view, the input pixel that it is taken from.
      rotation: int32 [k], the operation's row in the rotation tables below; row 0 does not rotate.
      tap: int32 [a, p], top left of the 4 x 4 window in the padded coefficient image.
      row_weight, column_weight: float32 [a, p, 4], spline weights; all 0 where the fill is grey.
      prefilter: float32 [h, h], turns a column of pixels into spline coefficients.
      transposed, source: the gathers again, as selections of whole rows and columns: bool [k],
        whether the image is transposed first; int32 [k, 2, 4, h / 2], the input rows and the input
        columns of each of the four output patches.
      row_factor, column_factor: float32 [a, p, h], the rotations again, including the prefilter:
        output pixel p is ``row_factor[a, p] @ image @ column_factor[a, p]``.
    """

    names: tuple[str, ...] = _static()
    families: tuple[str, ...] = _static()
    side: int = _static()
    rotation_rows: tuple[int, ...] = _static()
    factors: jax.Array
    gather: jax.Array
    rotation: jax.Array
    tap: jax.Array
    row_weight: jax.Array
    column_weight: jax.Array
    prefilter: jax.Array
    transposed: jax.Array
    source: jax.Array
    row_factor: jax.Array
    column_factor: jax.Array

    def __len__(self) -> int:
        return len(self.names)


def operation_set(
    name: str | Sequence[Operation] = "RA+IA+PR", side: int = 32, fill: str = "grey"
) -> OperationSet:
    """Operations for images of one side, with their tables on the default device.

    See :func:`compile_operations` for arguments and errors.
    """
    return jax.device_put(compile_operations(name, side, fill))


def compile_operations(
    name: str | Sequence[Operation] = "RA+IA+PR", side: int = 32, fill: str = "grey"
) -> OperationSet:
    """Compiles operations for images of one side; JAX is not started.

    Args:
      name: "RA", "RA+IA" or "RA+IA+PR" (the paper's 72, 88 and 111 operations), any other union of
        ``FAMILIES``, or a sequence of :class:`Operation`.
      side: image side in pixels, even and at least 4.
      fill: what a rotation shows outside the image: "grey" (0, as in the paper), "border" (the
        nearest border value) or "mirror".

    Returns:
      The operations, their tables as NumPy arrays.

    Raises:
      ValueError: if the side is odd or too small, the fill or a family is unknown, ``patches`` is
        not a permutation, an angle is a quarter turn, there are fewer than two operations or two
        of them do the same.
    """
    if side < 4 or side % 2:
        raise ValueError(f"side must be even and at least 4, got {side}: resize or pad the images")
    if fill not in FILLS:
        raise ValueError(f"fill must be one of {', '.join(FILLS)}, got {fill!r}")
    if isinstance(name, str):
        operations = paper_operations(name, side)
        families = [family for family in name.split("+") for _ in FAMILIES[family].build(side)]
    else:
        operations, families = list(name), [op.family for op in name]
    for operation in operations:
        _check(operation)
    gather = np.array([_gather_table(operation, side) for operation in operations])
    angles = [0.0, *sorted({op.angle % 360 for op in operations} - {0.0})]
    rotation = np.array([angles.index(op.angle % 360) for op in operations], np.int32)
    if len(np.unique(np.column_stack([gather, rotation]), axis=0)) < max(len(operations), 2):
        raise ValueError("an operation set needs at least two operations, all different")
    rotations = zip(*(_rotation_table(angle, side, fill) for angle in angles), strict=True)
    tap, row_weight, column_weight = map(np.stack, rotations)
    prefilter = scipy.ndimage.spline_filter1d(np.eye(side), 3, axis=0, mode="mirror")
    row, column = np.divmod(tap, side + 2 * _PAD)
    transposed, source = _selections(gather, side)
    return OperationSet(
        names=tuple(op.name for op in operations),
        families=tuple(families),
        side=side,
        rotation_rows=tuple(rotation.tolist()),
        factors=_factors(operations),
        gather=gather,
        rotation=rotation,
        tap=tap,
        row_weight=row_weight,
        column_weight=column_weight,
        prefilter=np.float32(prefilter),
        transposed=transposed,
        source=source,
        row_factor=_rotation_factor(row, row_weight, prefilter),
        column_factor=_rotation_factor(column, column_weight, prefilter),
    )


def subset(operation_set: OperationSet, chosen: Sequence[int]) -> OperationSet:
    """Some of the operations by their positions, which stay their pseudo labels elsewhere."""
    at = np.array(chosen)
    words, tables = ("names", "families", "rotation_rows"), ("gather", "rotation", "transposed")
    some = {name: tuple(getattr(operation_set, name)[i] for i in chosen) for name in words}
    some |= {name: getattr(operation_set, name)[at] for name in (*tables, "source")}
    return dataclasses.replace(operation_set, factors=operation_set.factors[:, at], **some)


def evenly(k: int, count: int) -> tuple[int, ...]:
    """So many of k operations, evenly over the families, shifts and turns; fewer are part of more.

    They are those whose multiples of the golden section have the smallest fractions.
    """
    return tuple(np.sort(np.argsort(np.arange(k) * _GOLDEN % 1)[:count]).tolist())


def _factors(operations: Sequence[Operation]) -> np.ndarray:
    values = [(op.flip, *op.shift, op.quarter_turns % 4, op.patches, op.angle) for op in operations]
    numbers = [
        [sorted(set(of_all)).index(v) for v in of_all] for of_all in zip(*values, strict=True)
    ]
    return np.array(numbers, np.int32)


def _check(operation: Operation) -> None:
    if sorted(operation.patches) != [0, 1, 2, 3] or not isinstance(operation.patches, tuple):
        raise ValueError(
            f"patches must be a permutation of (0, 1, 2, 3), a tuple, got {operation.patches}"
        )
    if operation.angle % 90 == 0 and operation.angle % 360:
        raise ValueError(f"angle {operation.angle:g} is a quarter turn: set quarter_turns instead")


def _gather_table(operation: Operation, side: int) -> np.ndarray:
    """int32 [p]: the gather of an operation.

    It is found by applying flip, shift, quarter turns and patches to an image whose pixels are
    their own numbers.
    """
    pixels = np.arange(side * side, dtype=np.int32).reshape(side, side)
    if operation.flip:
        pixels = pixels[:, ::-1]
    rows, columns = (_mirror_repeating_edge(np.arange(side) + t, side) for t in operation.shift)
    pixels = np.rot90(pixels[rows][:, columns], operation.quarter_turns)
    half = side // 2
    quarters = [pixels[r : r + half, c : c + half] for r in (0, half) for c in (0, half)]
    top_left, top_right, bottom_left, bottom_right = (quarters[j] for j in operation.patches)
    return np.block([[top_left, top_right], [bottom_left, bottom_right]]).ravel()


def _mirror_repeating_edge(index: np.ndarray, side: int) -> np.ndarray:
    """Folds indices into [0, side): ... 1 0 | 0 1 2 ... side - 1 | side - 1 ..."""
    index = index % (2 * side)
    return np.where(index < side, index, 2 * side - 1 - index)


def _rotation_table(
    angle: float, side: int, fill: str
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Tap [p] and weights [p, 4] of one rotation, at the points scipy.ndimage.rotate samples.

    SciPy's canvas grows until the whole rotated image fits; its window of the image's own size at
    floor((canvas - side) / 2) is kept.
    """
    cos, sin = scipy.special.cosdg(angle), scipy.special.sindg(angle)
    matrix = np.array([[cos, sin], [-sin, cos]])
    corners = matrix @ [[0, 0, side, side], [0, side, 0, side]]
    canvas = (np.ptp(corners, axis=1) + 0.5).astype(int)
    # Where the view's pixels lie on the grown canvas, relative to its centre: [2, p].
    place = np.indices((side, side)).reshape(2, -1)
    place = place + ((canvas - side) // 2 - (canvas - 1) / 2)[:, None]
    point = matrix @ place + (side - 1) / 2
    outside = ((point < 0) | (point > side - 1)).any(axis=0)
    if fill == "mirror":
        point = (side - 1) - np.abs((side - 1) - np.abs(point) % (2 * (side - 1)))
    point = np.clip(point, 0, side - 1)
    corner = np.floor(point).astype(np.int32)
    weights = _cubic_spline_weights(point - corner)
    if angle == 0:  # This row reads the pixels themselves, which are not spline coefficients.
        weights = np.broadcast_to(np.float64([0, 1, 0, 0]), weights.shape)
    if fill == "grey":
        weights = np.where(outside[:, None], 0.0, weights)
    row, column = corner - 1 + _PAD
    tap = row * (side + 2 * _PAD) + column
    return tap.astype(np.int32), weights[0].astype(np.float32), weights[1].astype(np.float32)


def _selections(gather: np.ndarray, side: int) -> tuple[np.ndarray, np.ndarray]:
    """The gathers [k, p] as ``OperationSet.transposed`` and ``OperationSet.source``."""
    half = side // 2
    patches = gather.reshape(-1, 2, half, 2, half).swapaxes(2, 3).reshape(-1, 4, half, half)
    # The input row of a pixel depends on its output row alone, or on its output column alone if
    # the operation transposes.
    rows = patches // side
    transposed = (rows != rows[..., :1]).any((1, 2, 3))
    turned = transposed[:, None, None, None]
    patches = np.where(turned, patches.swapaxes(2, 3), patches)
    source = np.stack([patches[..., 0] // side, patches[:, :, 0] % side], axis=1)
    return transposed, np.where(turned, source[:, ::-1], source).astype(np.int32)


def _rotation_factor(first: np.ndarray, weight: np.ndarray, prefilter: np.ndarray) -> np.ndarray:
    """The rotations in one dimension, as weights of the image's rows or columns.

    Args:
      first: int [a, p], the first padded coefficient that a view's pixel reads.
      weight: float [a, p, 4], weights of the four coefficients from there on.
      prefilter: float [h, h], pixels -> coefficients; row 0 of the rotations reads pixels instead.

    Returns:
      float32 [a, p, h].
    """
    side = len(prefilter)
    padded = np.pad(np.eye(side), ((_PAD, _PAD), (0, 0)), mode="reflect")
    factor = np.einsum("apt,apth->aph", weight, padded[first[..., None] + np.arange(_TAPS)])
    factor[1:] = factor[1:] @ prefilter
    return factor.astype(np.float32)


def _cubic_spline_weights(fraction: np.ndarray) -> np.ndarray:
    """Weights [..., 4] of the cubic B-spline at offsets -1, 0, 1, 2 from the pixel below a point.

    ``fraction`` [...] in [0, 1) is the point's distance from that pixel.
    """
    t = fraction[..., None] - np.arange(-1, 3)
    near, far = 2 / 3 - t**2 + np.abs(t) ** 3 / 2, np.maximum(2 - np.abs(t), 0) ** 3 / 6
    return np.where(np.abs(t) < 1, near, far)
