"""Collectives: what devices of a program tell each other.

These functions are called inside a program, see :func:`e3jax.devices.on_mesh`.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np

from e3jax.devices.mesh import AXIS
from e3jax.shapes import Int32, Shaped


def mean_over_devices(tree: Any) -> Any:
    """Inside a program: averages float32 arrays over the devices, in one collective.

    On a CPU each collective blocks a thread of XLA's pool until the other devices arrive, and they
    need threads to arrive. Two collectives at once can therefore deadlock, so all collectives of a
    program form one chain, each depending on the one before.
    """
    return _in_one(jax.lax.pmean, tree)


def sum_over_devices(tree: Any) -> Any:
    """Inside a program: sums float32 arrays over the devices, see :func:`mean_over_devices`."""
    return _in_one(jax.lax.psum, tree)


def _in_one(collective: Callable, tree: Any) -> Any:
    flat, unflatten = jax.flatten_util.ravel_pytree(tree)
    return unflatten(collective(flat, AXIS))


def gather_over_devices(tree: Any) -> Any:
    """Inside a program: joins the float32 arrays [n, ...] of all devices.

    It takes one collective, see :func:`mean_over_devices`.
    """
    leaves, treedef = jax.tree.flatten(tree)
    n = len(leaves[0])
    rows = [leaf.reshape(n, -1) for leaf in leaves]
    ends = np.cumsum([row.shape[1] for row in rows])[:-1]
    whole = jax.lax.all_gather(jnp.concatenate(rows, axis=1), AXIS, tiled=True)
    parts = jnp.split(whole, ends, axis=1)
    return treedef.unflatten(
        part.reshape(-1, *leaf.shape[1:]) for part, leaf in zip(parts, leaves, strict=True)
    )


def rows_of_split(
    part: Shaped[jax.Array, "m d"], index: Int32[jax.Array, " b"]
) -> Shaped[jax.Array, "rows d"]:
    """Inside a program: the calling device's part of rows by their index in a split array.

    Args:
      part: the calling device's rows of what :func:`place_split` split.
      index: the same on all devices.

    Returns:
      [b / devices, d].
    """
    if jax.lax.axis_size(AXIS) == 1:
        return part[index]
    place = index - jax.lax.axis_index(AXIS) * len(part)
    is_here = (0 <= place) & (place < len(part))
    rows = jnp.where(is_here[:, None], part[place.clip(0, len(part) - 1)], 0)
    return jax.lax.psum_scatter(rows, AXIS, scatter_dimension=0, tiled=True)


def part_of_device(whole: Shaped[jax.Array, "n ..."]) -> Shaped[jax.Array, "part ..."]:
    """Inside a program: the calling device's part of an array that every device has."""
    part = len(whole) // jax.lax.axis_size(AXIS)
    return jax.lax.dynamic_slice_in_dim(whole, jax.lax.axis_index(AXIS) * part, part)
