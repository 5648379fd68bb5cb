"""Arrays in blocks, each loaded when it is needed."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

_MANY = 4096  # items that iteration loads at a time


class LazyArray:
    """An array [n, ...] in blocks, each loaded when an index, a slice or positions, needs it.

    Args:
      load: ``number of a block -> array``, which is indexed by positions.
      counts: items of each block.
      like: an empty array of the shape [0, ...] and dtype.
      convert: applied to what was indexed in a block.
      rows: int [n], the items that these are; default: all.
    """

    def __init__(
        self,
        load: Callable[[int], Any],
        counts: Sequence[int],
        like: np.ndarray,
        convert: Callable[[Any], np.ndarray] = np.asarray,
        rows: np.ndarray | None = None,
    ):
        self._load, self._like, self._convert, self._rows = load, like, convert, rows
        self._counts, self._ends = tuple(counts), np.cumsum(counts)
        n = sum(self._counts) if rows is None else len(rows)
        self.shape, self.dtype, self.ndim = (n, *like.shape[1:]), like.dtype, like.ndim

    def __len__(self) -> int:
        return self.shape[0]

    def take(self, rows: np.ndarray) -> "LazyArray":
        """The items at these positions, int [m]."""
        rows = rows if self._rows is None else self._rows[rows]
        return LazyArray(self._load, self._counts, self._like, self._convert, rows)

    def __getitem__(self, index) -> np.ndarray:
        index = _positions(index, len(self))
        if index.ndim == 0:
            return self[index[None]][0]
        rows = index if self._rows is None else self._rows[index]
        values = np.empty((len(rows), *self.shape[1:]), self.dtype)
        blocks = np.searchsorted(self._ends, rows, side="right")
        for block in np.unique(blocks).tolist():
            here = np.flatnonzero(blocks == block)
            within = rows[here] - (self._ends[block] - self._counts[block])
            values[here] = self._convert(self._load(block)[within])
        return values

    def __iter__(self) -> Iterator:
        for start in range(0, len(self), _MANY):
            yield from self[start : start + _MANY]

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def tolist(self) -> list:
        """All items, as of an array."""
        return self[:].tolist()


AnyArray = np.ndarray | LazyArray  # in memory, or in blocks on a disk


def _positions(index, n: int) -> np.ndarray:
    """An index of any kind as positions."""
    if isinstance(index, slice):
        return np.arange(*index.indices(n))
    index = np.asarray(index)
    if index.dtype == bool:
        return np.flatnonzero(index)
    if index.size and not -n <= index.min() <= index.max() < n:
        raise IndexError(f"an index beyond the {n} items")
    return index.astype(np.int64) % n
