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
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
import scipy.ndimage

from e3jax.operations.families import FAMILIES, Operation, paper_operations
from e3jax.operations.gathers import gather_table, selections
from e3jax.operations.rotations import PAD, rotation_factor, rotation_table

FILLS = ("grey", "border", "mirror")
_GOLDEN = (5**0.5 - 1) / 2
_STATIC = {"static": True}
Table = Any  # an array, of NumPy or on devices, or its shape


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

    names: tuple[str, ...] = dataclasses.field(metadata=_STATIC)
    families: tuple[str, ...] = dataclasses.field(metadata=_STATIC)
    side: int = dataclasses.field(metadata=_STATIC)
    rotation_rows: tuple[int, ...] = dataclasses.field(metadata=_STATIC)
    factors: Table
    gather: Table
    rotation: Table
    tap: Table
    row_weight: Table
    column_weight: Table
    prefilter: Table
    transposed: Table
    source: Table
    row_factor: Table
    column_factor: Table

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
    gather = np.array([gather_table(operation, side) for operation in operations])
    angles = [0.0, *sorted({op.angle % 360 for op in operations} - {0.0})]
    rotation = np.array([angles.index(op.angle % 360) for op in operations], np.int32)
    if len(np.unique(np.column_stack([gather, rotation]), axis=0)) < max(len(operations), 2):
        raise ValueError("an operation set needs at least two operations, all different")
    rotations = zip(*(rotation_table(angle, side, fill) for angle in angles), strict=True)
    tap, row_weight, column_weight = map(np.stack, rotations)
    prefilter = scipy.ndimage.spline_filter1d(np.eye(side), 3, axis=0, mode="mirror")
    row, column = np.divmod(tap, side + 2 * PAD)
    transposed, source = selections(gather, side)
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
        row_factor=rotation_factor(row, row_weight, prefilter),
        column_factor=rotation_factor(column, column_weight, prefilter),
    )


def subset(operation_set: OperationSet, operation_indices: Sequence[int]) -> OperationSet:
    """Operations by their positions, which stay their pseudo labels elsewhere."""
    at = np.array(operation_indices)
    return dataclasses.replace(
        operation_set,
        names=tuple(operation_set.names[i] for i in operation_indices),
        families=tuple(operation_set.families[i] for i in operation_indices),
        rotation_rows=tuple(operation_set.rotation_rows[i] for i in operation_indices),
        factors=operation_set.factors[:, at],
        gather=operation_set.gather[at],
        rotation=operation_set.rotation[at],
        transposed=operation_set.transposed[at],
        source=operation_set.source[at],
    )


def evenly(k: int, count: int) -> tuple[int, ...]:
    """Positions of ``count`` of k operations, evenly over families, shifts and turns.

    Those of a smaller count are among those of a larger one.

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
