"""Operations that move pixels (flip, shift, quarter turns, patches) as tables of indices.

Shapes: ``k`` operations, ``p = side * side`` pixels.
"""

import numpy as np

from e3jax.operations.families import Operation
from e3jax.shapes import Bool, Int32


def gather_table(operation: Operation, side: int) -> Int32[np.ndarray, " p"]:
    """The gather of an operation: for every pixel of the view, the input pixel.

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


def selections(
    gather: Int32[np.ndarray, "k p"], side: int
) -> tuple[Bool[np.ndarray, " k"], Int32[np.ndarray, "k 2 4 half"]]:
    """The gathers [k, p] as ``OperationSet.transposed`` and ``OperationSet.source``."""
    half = side // 2
    patches = gather.reshape(-1, 2, half, 2, half).swapaxes(2, 3).reshape(-1, 4, half, half)
    # The input row of a pixel depends only on its output row, or only on its output column if
    # the operation transposes.
    rows = patches // side
    transposed = (rows != rows[..., :1]).any((1, 2, 3))
    turned = transposed[:, None, None, None]
    patches = np.where(turned, patches.swapaxes(2, 3), patches)
    source = np.stack([patches[..., 0] // side, patches[:, :, 0] % side], axis=1)
    return transposed, np.where(turned, source[:, ::-1], source).astype(np.int32)
