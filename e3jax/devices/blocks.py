"""Maps a function over any number of items, in blocks split over a mesh."""

import collections
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from e3jax.devices.collectives import (
    gather_over_devices,
)
from e3jax.devices.mesh import (
    AXIS,
    EVERYWHERE,
    SPLIT,
    fetched,
    place,
    shapes,
)
from e3jax.devices.programs import (
    Program,
    on_mesh,
)

# Blocks in flight, so that devices compute while earlier results are fetched.
_BLOCKS_AHEAD = 2


class BatchMap:
    """Maps a function of a few items over any number of them, in blocks split over a mesh.

    Items are pytrees of arrays with a leading axis, such as images and their indices. All blocks
    have the same shape, so one program serves any number of items; in a block that is not full,
    only the items that exist are computed.

    Args:
      function: ``(shared, items [b, ...]) -> pytree`` of float32 arrays [b, ...]; it treats each
        item independently.
      mesh: devices to split each block over; every device has all of ``shared``.
      block: smallest number of items per block; it is rounded up to a multiple of ``together`` per
        device.
      together: items per call of ``function``.
      precision: of products, one of ``PRECISIONS``.
    """

    def __init__(self, function: Callable, mesh: Mesh, block: int, together: int, precision: str):
        self._function, self._mesh, self._together = function, mesh, together
        self._rows = -(-block // (mesh.size * together)) * together
        self._program = on_mesh(self._block, mesh, precision, (EVERYWHERE, SPLIT, EVERYWHERE))

    def _block(self, shared: Any, items: Any, count: jax.Array) -> Any:
        """Computes the items of one device; ``count`` of the block's items exist, dealt in turn."""
        together, devices = self._together, jax.lax.axis_size(AXIS)
        mine = (count + devices - 1 - jax.lax.axis_index(AXIS)) // devices

        def call(i: jax.Array, results: Any) -> Any:
            start = i * together
            these = jax.tree.map(lambda a: jax.lax.dynamic_slice_in_dim(a, start, together), items)
            return jax.tree.map(
                lambda all, new: jax.lax.dynamic_update_slice_in_dim(all, new, start, 0),
                results,
                self._function(shared, these),
            )

        one = jax.eval_shape(self._function, shared, jax.tree.map(lambda a: a[:together], items))
        empty = jax.tree.map(lambda a: jnp.zeros((self._rows, *a.shape[1:]), a.dtype), one)
        results = jax.lax.fori_loop(0, (mine + together - 1) // together, call, empty)
        # Gathered here, because a host may see only some of the mesh's devices.
        return gather_over_devices(results)

    def __call__(
        self, shared: Any, items: Any, on_block: Callable[[int], None] = lambda done: None
    ) -> Any:
        """Calls the function; ``shared`` is placed once.

        Args:
          shared: the function's first argument.
          items: pytree of arrays [n, ...], or what is sliced like them.
          on_block: called with the number of items done after each block.

        Returns:
          A pytree of NumPy arrays [n, ...].
        """
        shared, n = place(self._mesh, shared), len(jax.tree.leaves(items)[0])
        size = self._rows * self._mesh.size
        dealt = np.arange(size).reshape(self._rows, -1).T.ravel()  # by device
        in_order = np.argsort(dealt)
        under_way, blocks = collections.deque(), []

        def fetch() -> None:
            blocks.append(jax.tree.map(lambda a: a[in_order], fetched(under_way.popleft())))
            on_block(min(len(blocks) * size, n))

        for start in range(0, n, size):
            count = min(size, n - start)
            index = np.minimum(dealt, count - 1)  # what does not exist is not computed
            block = jax.tree.map(lambda a, i=index, s=start: a[s : s + size][i], items)
            block = place(self._mesh, block, SPLIT)
            under_way.append(self._program(shared, block, place(self._mesh, np.int32(count))))
            if len(under_way) >= _BLOCKS_AHEAD:
                fetch()
        while under_way:
            fetch()
        return jax.tree.map(lambda *a: np.concatenate(a)[:n], *blocks)

    def program(self, shared: Any, item: Any) -> Program:
        """The program of a block, for the shapes of ``shared`` and of one item."""
        count = self._rows * self._mesh.size
        block = jax.tree.map(lambda a: jax.ShapeDtypeStruct((count, *a.shape), a.dtype), item)
        whole = functools.partial(shapes, self._mesh)
        return Program(
            self._program, (whole(shared), shapes(self._mesh, block, SPLIT), whole(np.int32(0)))
        )
